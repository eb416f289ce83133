"""Which formats of pictures are read, by what, and what else looks like a picture."""

from dataclasses import dataclass

# Pillow reads many more, some through other programs; a file's ending does not choose among them.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")

# Files with these endings are taken for pictures, in any spelling; the last two lines need a plugin.
IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".avif", ".avifs"),
        *(".heic", ".heif", ".hif", ".heics", ".heifs"),
        ".jxl",
    }
)
# Files with these endings are taken for videos.
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"})
# Files with these endings are taken for sounds.
SOUND_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".w64"})
# Endings of pictures that are not read. Such a file is left alone, and named.
UNREAD_SUFFIXES = frozenset(
    (
        ".tga .icb .vda .vst .psd .psb .xcf .kra .ora .clip .ico .icns .cur .dds .exr .hdr .dib .pcx .dcx .qoi "
        ".ppm .pgm .pbm .pnm .pfm .pam .xbm .xpm .sgi .rgb .rgba .bw .ras .jp2 .j2k .j2c .jpc .jpf .jpx .jxr .wdp "
        ".hdp .bpg .flif .fit .fits .svg .svgz .eps .ai .wmf .emf .dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf "
        ".orf .raf .rw2 .pef .srw .x3f .3fr .iiq .erf .kdc .mrw .rwl"
    ).split()
)
CONVERT = "convert it, to PNG for one"

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_JXL_CODESTREAM = b"\xff\n"
# Width to height by the 3 bits that stand for them; 0 stands for a width of its own.
_JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_MOST_BOXES = 100


@dataclass(frozen=True)
class Kind:
    """A format that Pillow reads by a plugin.

    Args:
        format: as Pillow calls it once the plugin is there.
        words: as people call it.
        plugin: package that reads it.
    """

    format: str
    words: str
    plugin: str


HEIC = Kind("HEIF", "a HEIC picture", "pillow-heif")
JPEG_XL = Kind("JXL", "a JPEG XL picture", "pillow-jxl-plugin")


def kind_of(head: bytes) -> Kind | None:
    """The format of a file by its first bytes, 64 or more, where that needs a plugin."""
    if head.startswith((_JXL_CONTAINER, _JXL_CODESTREAM)):
        return JPEG_XL
    if head[4:8] == b"ftyp":
        brands = [
            head[8:12],
            *(head[at : at + 4] for at in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4)),
        ]
        if b"avif" not in brands and any(brand in _HEIF_BRANDS for brand in brands):
            return HEIC
    return None


def formats_of(kind: Kind | None) -> tuple[str, ...]:
    """Names of the formats that Pillow may try on a file of a kind, the kind's plugin loaded.

    Raises:
        ValueError: the plugin is not there. The message says what to install, without the path.
    """
    if kind is None:
        return FORMATS
    try:
        if kind is HEIC:
            import pillow_heif

            pillow_heif.register_heif_opener()
        else:
            import pillow_jxl  # noqa: F401  # registers itself
    except ImportError as error:
        raise ValueError(
            f"is {kind.words}, which needs {kind.plugin} ({error}): pip install 'fera[pictures]', or {CONVERT}"
        ) from None
    return (kind.format,)


def jxl_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG XL file states; None where it states none that can be found.

    The plugin decodes a file when it is opened, before Pillow could tell its size.

    Source:
        ISO/IEC 18181-1 (the codestream's SizeHeader), 18181-2 (the boxes around it).
    """
    codestream = _codestream(content)
    if not codestream.startswith(_JXL_CODESTREAM):
        return None
    bits, at = int.from_bytes(codestream[2:16], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    is_small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = _JXL_RATIOS[take(3)]
    return (side() if ratio is None else height * ratio[0] // ratio[1]), height


def _codestream(content: bytes) -> bytes:
    """The first bytes of the codestream, out of the boxes around it."""
    if not content.startswith(_JXL_CONTAINER):
        return content[:16]
    at = 0
    for _ in range(_MOST_BOXES):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        start = at + 8
        if length == 1:
            length, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0  # the number of the part
            return content[start : start + 16]
        if length < 8:  # to the end of the file, or no box
            break
        at += length
    return b""
