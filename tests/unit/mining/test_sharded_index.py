"""How a corpus is divided over indexes, without starting Ray."""

import numpy as np
import pytest

from qzhou.data.storage import Folder
from qzhou.mining.shard import VectorFile
from qzhou.mining.sharded_index import index_of, shards_of


@pytest.mark.parametrize(
    ("index", "from_documents", "taken", "shards"),
    [
        ("Flat", 0, "Flat", 1),
        ("IVF4,Flat", 60, "IVF4,Flat", 3),  # 60 x 16 x 4 bytes in shards of 1.5 kB
        ("IVF4,Flat", 61, "Flat", 1),  # searched exactly: nothing of it is held in memory
    ],
)
def test_only_an_index_that_is_built_has_to_fit_into_memory(
    tmp_path, make_recipe, index, from_documents, taken, shards
):
    folder = Folder.open(str(tmp_path))
    files = [VectorFile(f"{number}.npy", 20 * number, 20) for number in range(3)]
    for file in files:
        folder.write_array(file.name, np.zeros((20, 16), np.float32))
    mining = {"index": index, "index_from_documents": from_documents, "index_memory_gb": 1500 / 2**30}
    recipe = make_recipe(mining=mining)

    assert index_of(recipe.mining, files) == taken
    assert len(shards_of(recipe, folder, files, shard_rows=20_000)) == shards
