"""FC100, 5-way 5-shot, MAML, transductive; learn2learn gives 49.0 %, PaddleFSL 49.1 % (first order).

Five queries per class at test; the rest as in `fc100_5w1s.py`. Not run by us yet.

    python launch.py --config configs/fc100_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("fc100_5w1s")
    c.task.shot = 5
    c.eval.query = 5
    return c
