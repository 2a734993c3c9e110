"""onnxruntime-web, which runs ONNX files in a browser: downloaded once by npm, verified, and cached."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from biflow.errors import InputError
from biflow.files import cache_folder, replace_file

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
TIMEOUT = 600  # seconds, of a download of 30 MB
OTHERWISE = (
    f"Unpack onnxruntime-web {VERSION} from https://www.npmjs.com/package/onnxruntime-web and give its folder: "
    "--runtime FOLDER."
)


def copy_runtime(to: Path, given: Path | None) -> None:
    """Copy the runtime's files to a folder, from a given folder or from the npm package."""
    to.mkdir(parents=True, exist_ok=True)
    if given is not None:
        source = find_runtime(given)
        for name in FILES:
            shutil.copyfile(source / name, to / name)
        return
    with tarfile.open(fetch_runtime()) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            (to / name).write_bytes(member.read())


def find_runtime(folder: Path) -> Path:
    """The folder with the runtime's files: the given one or its dist."""
    for each in (folder, folder / "dist", folder / "package" / "dist"):
        if all((each / name).is_file() for name in FILES):
            return each
    raise InputError(f"Expected {' and '.join(FILES)} in {folder} or its folder dist; they are missing. {OTHERWISE}")


def fetch_runtime() -> Path:
    """The npm package as a file, from the cache or downloaded; its checksum is verified."""
    kept = cache_folder() / f"onnxruntime-web-{VERSION}.tgz"
    if kept.is_file() and is_sound(kept):
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(kept) as temporary:
        download(temporary)
        if not is_sound(temporary):
            raise InputError(f"Expected a file with SHA-512 {SHA512[:12]}... from npm; got another. {OTHERWISE}")
    return kept


def is_sound(path: Path) -> bool:
    """Whether a file has the checksum of this version."""
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode() == SHA512


def download(path: Path) -> None:
    """Download the package with npm, from its configured registry."""
    folder = path.with_name(f"{path.name}.npm")
    folder.mkdir()
    package = f"onnxruntime-web@{VERSION}"
    command = ["npm", "pack", package, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, cwd=folder)
        next(folder.glob("*.tgz")).replace(path)
        return
    except FileNotFoundError:
        fault = "it is not installed"
    except subprocess.CalledProcessError as error:
        lines = [*error.stderr.splitlines(), *error.stdout.splitlines()]
        reason = next((line for line in lines if "error" in line.lower() or "ERR" in line), f"code {error.returncode}")
        fault = f"it could not ({reason.strip()[:99]})"
    except (subprocess.TimeoutExpired, StopIteration):
        fault = "it timed out"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise InputError(f"Expected npm to fetch {package}; {fault}. {OTHERWISE}")
