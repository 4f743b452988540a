"""The records of TFRecord files, checked and read without TensorFlow."""

from collections.abc import Iterator, Sequence
from typing import Any

from maml_jax.errors import DataError


def _records(file: str) -> Iterator[bytes]:
    from grain.experimental import TFRecordIterDataset  # takes a second to load, which no other data set needs

    return iter(TFRecordIterDataset(file))


class TFRecords(Sequence[bytes]):
    """The records of a split in TFRecord files: read whole once, for their checksums, and then one by one.

    Args:
      info: the split's.

    Raises:
      DataError: if a file is damaged.
    """

    def __init__(self, info: Any):
        self._places: list[tuple[str, int]] = []
        for file, count in zip(map(str, info.filepaths), info.shard_lengths, strict=True):
            places = list(self._check(file))
            if len(places) != count:
                raise DataError(f"cannot read {file}: it has {len(places)} examples instead of {count}")
            self._places += ((file, place) for place in places)

    @staticmethod
    def _check(file: str) -> Iterator[int]:
        """Yields where each record begins."""
        import google_crc32c

        records = _records(file)
        with open(file, "rb") as raw:
            while True:
                start = records.get_state()["reader_offset"]
                try:
                    record = next(records, None)
                except (ValueError, OverflowError, MemoryError) as error:
                    raise DataError(f"cannot read {file}: truncated or damaged at byte {start}") from error
                if record is None:
                    return
                raw.seek(records.get_state()["reader_offset"] - 4)
                crc = google_crc32c.value(record)
                masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32  # TFRecord's own way of storing a checksum
                if int.from_bytes(raw.read(4), "little") != masked:
                    raise DataError(f"cannot read {file}: the record at byte {start} differs from its checksum")
                yield start

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> bytes:
        file, place = self._places[i]
        records = _records(file)
        records.set_state({"reader_offset": place})
        return next(records)
