"""What the loader of Redis scripts demands of a file, and of a call."""

import asyncio
import importlib.resources

import pytest
from redis.asyncio import Redis

from meshkit.lua import Script, ScriptFormatError

GOOD = """-- Adds to a counter.
-- KEYS[1] the counter
-- ARGV[1] how much
-- Output: the sum
return redis.call('INCRBY', KEYS[1], ARGV[1]) -- not ARGV[9]
"""
MANY = """-- Adds to counters.
-- KEYS[1..n] the counters
-- ARGV[1] how much
-- ARGV[2..] and more
-- Output: the number of keys
return #KEYS
"""


def test_each_script_of_the_runtime_is_well_formed() -> None:
    folder = importlib.resources.files("meshkit") / "lua"
    names = [file.name for file in folder.iterdir() if file.name.endswith(".lua")]
    assert "lock_release-1.lua" in names
    for name in names:
        Script.load("meshkit", f"lua/{name}")


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("add.lua", GOOD, "name-<number of keys>"),
        ("add-2.lua", GOOD, "states 2 keys, the header lists 1"),
        ("add-n.lua", GOOD, "states n keys"),
        ("add-1.lua", MANY, "states 1 keys"),
        ("add-1.lua", GOOD.replace("-- Output: the sum\n", ""), "Output"),
        ("add-1.lua", GOOD.replace("-- Adds to a counter.\n", ""), "says what"),
        ("add-1.lua", GOOD.replace("ARGV[1])", "ARGV[2])"), r"ARGV\[2\] is used"),
        ("add-1.lua", GOOD.replace("KEYS[1], ", "KEYS[2], "), r"KEYS\[2\] is used"),
        ("add-1.lua", GOOD.replace("-- ARGV[1]", "-- ARGV[2]"), "as number 1"),
        ("add-1.lua", "return 1", "says what"),
        ("add-n.lua", MANY.replace("-- ARGV[1]", "-- ARGV[1..]"), "nothing follows"),
    ],
)
def test_a_file_whose_parts_disagree_is_refused(name: str, source: str, problem: str) -> None:
    with pytest.raises(ScriptFormatError, match=problem):
        Script(name, source)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="absent-1"):
        Script.load("meshkit", "lua/absent-1.lua")


@pytest.mark.parametrize(("keys", "arguments"), [([], [1]), (["a", "b"], [1]), (["a"], []), (["a"], [1, 2])])
def test_a_call_with_another_number_of_keys_or_arguments_is_refused(keys: list[str], arguments: list[int]) -> None:
    script = Script("add-1.lua", GOOD)
    with pytest.raises(ValueError, match="takes 1"):
        asyncio.run(script(Redis(), keys, arguments))


def test_a_script_for_any_number_of_keys_takes_them_and_asks_for_its_fixed_arguments() -> None:
    script = Script("add-n.lua", MANY)
    pipeline = Redis().pipeline(transaction=False)
    for count in (0, 1, 5):
        script.queue(pipeline, [f"k{index}" for index in range(count)], [1, 2, 3])
    with pytest.raises(ValueError, match="takes 1 arguments"):
        script.queue(pipeline, ["a"], [])


def test_a_pipeline_carries_the_source_once_and_then_its_digest() -> None:
    script, other = Script("add-1.lua", GOOD), Script("add-1.lua", GOOD + "\n")
    pipeline = Redis().pipeline(transaction=False)
    for each in (script, script, other, script, other):
        each.queue(pipeline, ["a"], [1])
    assert [command[0][0] for command in pipeline.command_stack] == ["EVAL", "EVALSHA", "EVAL", "EVALSHA", "EVALSHA"]
    # Each execution starts a new stack, and may meet another server.
    pipeline.command_stack = []
    script.queue(pipeline, ["a"], [1])
    assert [command[0][0] for command in pipeline.command_stack] == ["EVAL"]
