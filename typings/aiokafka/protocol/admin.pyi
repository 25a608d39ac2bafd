class CreateTopicsRequest:
    def __init__(
        self,
        create_topic_requests: list[tuple[str, int, int, list[object], list[tuple[str, str]]]],
        timeout: int,
        validate_only: bool,
    ) -> None: ...

class DescribeConfigsRequest:
    def __init__(self, resources: list[tuple[int, str, list[str] | None]]) -> None: ...

class CreatePartitionsRequest:
    def __init__(
        self, topic_partitions: list[tuple[str, tuple[int, list[int] | None]]], timeout: int, validate_only: bool
    ) -> None: ...

class DeleteRecordsRequest:
    def __init__(self, topics: list[tuple[str, list[tuple[int, int]]]], timeout_ms: int) -> None: ...

class AlterConfigsRequest:
    def __init__(self, resources: list[tuple[int, str, list[tuple[str, str]]]]) -> None: ...

class DescribeGroupsRequest:
    def __init__(self, groups: list[str]) -> None: ...

class ListGroupsRequest:
    def __init__(self) -> None: ...

class ApiVersionRequest:
    def __init__(self) -> None: ...
