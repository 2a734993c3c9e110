import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from biflow.data.decode import opened
from biflow.data.pixel_budget import PIXELS, PixelBudget


def test_threads_never_hold_more_pixels_than_the_budget_or_one_larger_image():
    budget, held, lock = PixelBudget(10), [], threading.Lock()
    now = [0, 0]

    def hold(pixels):
        with budget.take(pixels):
            with lock:
                now[0] += pixels
                now[1] += 1
                held.append(tuple(now))
            time.sleep(0.001)
            with lock:
                now[0] -= pixels
                now[1] -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [4, 3, 25, 6, 1, 10, 2, 25, 5, 4] * 4))
    assert all(pixels <= 10 or count == 1 for pixels, count in held)
    assert max(count for _, count in held) > 1
    assert budget.taken == 0


def test_an_image_that_fails_gives_its_pixels_back():
    budget = PixelBudget(10)
    with pytest.raises(ValueError, match="damaged"), budget.take(8):
        raise ValueError("damaged")
    assert budget.taken == 0


def test_an_open_image_holds_its_pixels(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "x.png")
    before = PIXELS.taken
    with opened(tmp_path / "x.png"):
        assert PIXELS.taken == before + 600
    assert PIXELS.taken == before


PEAK = """
import resource, sys, torch
from pathlib import Path
from biflow.data import decode, pictures, scan
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = peak()
{call}
print((peak() - start) / 4000**2)
"""
CALLS = {"read": "decode.read_image(Path(sys.argv[1]), 64, 3)", "look": "decode.inspect(Path(sys.argv[1]))"}
CALLS["upload"] = "pictures.read_picture(Path(sys.argv[1]), 64, 3)"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "I;16"])
def test_decoding_takes_little_more_memory_than_an_image_and_a_copy(tmp_path, mode, call):
    image = Image.new(mode, (4000, 4000), 30000 if mode == "I;16" else 1)
    image.save(tmp_path / "x.png", **({"transparency": 0} if mode == "P" else {}))
    command = [sys.executable, "-c", PEAK.format(call=call), str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10  # bytes per pixel
