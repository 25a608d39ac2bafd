"""The tests that a program holds explain their failures as others do."""

import pytest

pytest.register_assert_rewrite("tests.programs.p11_handler_tests")
