"""How the work of mining is cut up and who does it; nothing here changes a result. No ray in here."""

from dataclasses import dataclass

from qzhou.encoder.vectors import CHUNK_ROWS
from qzhou.mining.actors import EncodeActor, SearchActor


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the parts of the work, and the classes of its actors.

    Attributes:
        chunk_rows: Texts of one vector file.
        block_chunks: Chunks of queries that are searched and selected together.
        shard_rows: A corpus of fewer documents is searched by one actor.
        encode_actor: Encodes chunks.
        search_actor: Searches a shard.
    """

    chunk_rows: int = CHUNK_ROWS
    block_chunks: int = 16
    shard_rows: int = 20_000
    encode_actor: type[EncodeActor] = EncodeActor
    search_actor: type[SearchActor] = SearchActor


DEFAULT = Layout()
