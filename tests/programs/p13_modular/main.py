"""`switchgear run tests.programs.p13_modular.main:create`"""

from switchgear import Bus

from . import franking


def create() -> Bus:
    bus = Bus(namespace="staging.")
    bus.include(franking.router)
    return bus


if __name__ == "__main__":
    create().run()
