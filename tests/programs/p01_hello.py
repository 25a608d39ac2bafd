from switchgear import Bus
bus = Bus("sqlite:///hello.db")
@bus.subscribe("hello", group="demo")
async def hello(name: str) -> None:
    print(f"Hello, {name}!", flush=True)
bus.run()
