"""What TensorBoard would show of a run: its event files, read as TensorBoard reads them."""

import struct
from pathlib import Path

from tensorboardX.proto import event_pb2


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars by tag and step. A file that starts at a step takes what those before it have from there on."""
    found = {}
    for path in sorted(folder.iterdir()):
        for event in _events(path.read_bytes()):
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def _events(content):
    """The events of a file; each is its length, a checksum, itself, and another; the last may lack its end."""
    while len(content) >= 12:
        (length,) = struct.unpack("<Q", content[:8])
        if len(content) < length + 16:
            return
        yield event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[length + 16 :]
