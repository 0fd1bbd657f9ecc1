"""Looking into a video file: what it holds, how it is displayed, and when."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mstemba.data_manifests.playlists import read_playlist
from mstemba.errors import DecodeError, UsageError
from mstemba.limits import LONGEST_VIDEO, MOST_FPS
from mstemba.pipeline.decode.request import VideoInfo, no_heartbeat
from mstemba.pipeline.decode.timeline import NO_TIME, PACKET, Packets, Timeline, closed_groups
from mstemba.reading.files import file_size
from mstemba.records import TIMECODE

# Flags of FFmpeg's AVInputFormat.
_NO_TIMES, _BROADCAST = 0x80, 0x200
# Formats of FFmpeg that are no video, or whose content is in other files that nobody fingerprints.
_REFUSED = {"image2": "a picture", "concat": "a list of files", "dash": "a list of files"}
_LIST = b"ffconcat"
_ASSUMED_FPS = 25.0
# A pause is reported if it is longer than this many seconds, and than this many usual steps.
_LONG_PAUSE = (60.0, 100)
# Transfer functions of FFmpeg's AVColorTransferCharacteristic.
_HDR = {16: "PQ", 18: "HLG"}
# What finds the size and format in a packet: filters of FFmpeg, or a part of a keyframe's header.
_EXTRACT = {
    "h264": "h264_mp4toannexb,extract_extradata",
    "hevc": "hevc_mp4toannexb,extract_extradata",
    "av1": "extract_extradata",
    "mpeg4": "extract_extradata",
}
_HEADER = {"vp8": slice(3, 10), "vp9": slice(1, 9)}
# FFmpeg decodes frames of x264 before build 151 otherwise, if the first of them says so.
_X264, _LIKE_THE_STANDARD = re.compile(rb"x264 - core (\d+)"), 151
# A picture of H.264 that resets the decoder. Other keyframes may be points of a gradual refresh.
_IDR = re.compile(rb"\0\0\x01[\x25\x45\x65]")
# The beginning of a file, which FFmpeg does not look for behind the last packet of these formats.
_BEGINS = re.compile(
    rb"\0\0\0[\x10-\x40]ftyp|FLV\x01[\x01\x04\x05]\0\0\0\x09|\x1aE\xdf\xa3.{1,8}B\x86\x81\x01",
    re.DOTALL,
)
_TAIL = 1 << 24  # bytes behind the last packet that are searched for it


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and the stream that is its video.

    Raises:
        DecodeError: The file has no video.
    """
    _refuse_what_never_ends(path)
    # Without `file:`, FFmpeg would read the part of a name before a colon as a protocol.
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        name = container.format.name
        if what := _REFUSED.get(name, "a picture" if name.endswith("_pipe") else ""):
            raise DecodeError(f"{path}: {what}, not a video")
        covers = {s.index for s in container.streams if s.disposition & Disposition.attached_pic}
        streams = [s for s in container.streams.video if s.index not in covers]
        if not streams:
            kinds: set[str] = {s.type for s in container.streams if s.index not in covers}
            kinds |= {"a cover picture"} if covers else set()
            found = " and ".join(sorted(kinds, key=len)) or "nothing"
            raise DecodeError(f"{path}: no video stream in it, only {found}")
        best = container.streams.best("video")
        stream = next((s for s in streams if s is best), streams[0])
        if stream.codec_context is None:
            raise DecodeError(f"{path}: this FFmpeg has no decoder for its video stream")
        yield container, stream


def _refuse_what_never_ends(path: Path) -> None:
    """Raise DecodeError for pipes and devices, also as pieces of a playlist."""
    try:
        file_size(path)
        if (playlist := read_playlist(path)) and playlist.problems:
            raise DecodeError(f"{path}: {playlist.problems[0]}")
        with path.open("rb") as file:
            if file.read(len(_LIST)) == _LIST:
                raise DecodeError(f"{path}: {_REFUSED['concat']}, not a video")
    except UsageError as error:
        raise DecodeError(str(error)) from None


def probe(
    path: Path, fps: float | None = None, heartbeat: Callable[[], None] = no_heartbeat
) -> VideoInfo:
    """Read what a file says about its video: one decoded frame, and a pass over its packets.

    Args:
        path: The video file.
        fps: Frames per second, for a file that does not say when its frames are displayed.
        heartbeat: Called for every packet.

    Raises:
        DecodeError: The file is not a video, none of its frames can be decoded, or FFmpeg would
            lose a second recording in it.
    """
    try:
        packets, keeps_parameters = _read_packets(path, heartbeat)
        with open_video(path) as (container, stream):
            stream.codec_context.thread_count = 1
            frame = _first_frame(container, stream, path)
            timeline, warnings = _timeline(container, stream, packets, fps)
            _refuse_damaged_clock(path, timeline)
            if frame.interlaced_frame:
                warnings.append(
                    "interlaced: its frames are used as they are. To deinterlace it: "
                    "ffmpeg -i IN -vf bwdif OUT.mp4"
                )
            if curve := _HDR.get(stream.codec_context.color_trc):
                warnings.append(f"HDR ({curve}): its colours are used without tone mapping")
            is_cut, odd_end = _check_end(container, stream, timeline)
            warnings += odd_end
            return VideoInfo(
                width=frame.width,
                height=frame.height,
                codec=stream.codec_context.codec.canonical_name,
                containers=frozenset(container.format.name.split(",")),
                # In broadcasts it may change, and only the frames have it.
                pixel_aspect=None
                if container.format.flags & _BROADCAST
                else stream.sample_aspect_ratio,
                interlaced=frame.interlaced_frame,
                upright=_upright(frame),
                timeline=timeline,
                closed_groups=closed_groups(packets, timeline.by_number),
                is_cut=is_cut,
                keeps_parameters=keeps_parameters,
                timecode=_timecode(container),
                warnings=warnings,
            )
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DecodeError(f"{path}: not a readable video: {reason}") from None


def _read_packets(path: Path, heartbeat: Callable[[], None]) -> tuple[Packets, bool]:
    """Return the packets, and whether all keyframes have the same parameters."""
    rows, parameters = array("q"), set()
    with open_video(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        extract = BitStreamFilterContext(_EXTRACT[codec], stream) if codec in _EXTRACT else None
        known = bool(extract) or codec in _HEADER
        end, is_standard = 0, True
        for packet in container.demux(stream):
            heartbeat()
            if packet.is_discard:  # an edit list begins behind it
                rows.extend((NO_TIME, NO_TIME, 0, 0, 0))
            if packet.is_discard or not packet.size:
                continue
            end = max(end, (packet.pos or 0) + packet.size)
            if not rows and (build := _X264.search(bytes(packet))):
                is_standard = int(build[1]) >= _LIKE_THE_STANDARD
            times = [NO_TIME if time is None else time for time in (packet.pts, packet.dts)]
            duration, resets = packet.duration or 0, False
            is_keyframe = packet.is_keyframe
            if is_keyframe and known:
                try:
                    found, is_idr = _inspect(packet, _HEADER.get(codec), extract)  # empties it
                except av.FFmpegError:
                    known = False  # the packet is damaged
                else:
                    parameters |= found
                    resets = is_standard and (is_idr or codec != "h264")
            rows.extend((*times, duration, is_keyframe, resets))
        if end and {"mp4", "flv", "matroska"} & set(container.format.name.split(",")):
            _refuse_lost_recording(path, end)
    return np.frombuffer(rows, PACKET), known and len(parameters) < 2


def _inspect(
    packet: Packet[VideoStream], header: slice | None, extract: BitStreamFilterContext | None
) -> tuple[set[bytes], bool]:
    """Return a keyframe's size and format, as it is written there, and whether it is an IDR."""
    if extract is None:
        return {bytes(packet)[header or slice(0)]}, False
    filtered = extract.filter(packet)
    data = [data for part in filtered for data in part.iter_sidedata()]
    parameters = {bytes(item) for item in data if item.data_type == "new_extradata"}
    return parameters, any(_IDR.search(bytes(part)) for part in filtered)


def _refuse_lost_recording(path: Path, end: int) -> None:
    """Raise DecodeError for another file that begins behind the last packet."""
    with path.open("rb") as file:
        file.seek(end)
        if begin := _BEGINS.search(file.read(_TAIL)):
            raise DecodeError(
                f"{path}: another recording begins at byte {end + begin.start()}, which players "
                f"do not show. Join the recordings again: ffmpeg -f concat -i LIST -c copy OUT.mp4"
            )


def _check_end(
    container: InputContainer, stream: VideoStream, timeline: Timeline
) -> tuple[bool, list[str]]:
    """Return whether the end of a video is missing, and a warning if its header says another."""
    promised = _promised_duration(container, stream)
    whole = (container.duration or 0) / av.time_base
    is_cut = timeline.end < promised - 1
    # A damaged clock: the header counts the frames, and the container tells another length.
    if is_cut or (stream.frames and timeline.end > 2 * whole + 60 > 60):
        said = promised if is_cut else whole
        return is_cut, [f"ends at {timeline.end:.1f} s, its header says {said:.1f} s"]
    return is_cut, []


def _refuse_damaged_clock(path: Path, timeline: Timeline) -> None:
    """Raise DecodeError for a rate or a length that no video has."""
    found = None
    if timeline.fps > MOST_FPS:
        found = f"{timeline.fps:,.0f} frames per second, expected at most {MOST_FPS:,.0f}"
    elif timeline.end > LONGEST_VIDEO:
        found = f"{timeline.end:,.0f} s long, expected at most a year"
    if found:
        raise DecodeError(
            f"{path}: {found}; its clock is damaged. Give it another one: "
            f"ffmpeg -r FPS -i IN OUT.mp4"
        )


def _first_frame(container: InputContainer, stream: VideoStream, path: Path) -> VideoFrame:
    for packet in container.demux(stream):
        try:
            for frame in packet.decode():
                assert isinstance(frame, VideoFrame)
                return frame
        except av.FFmpegError:
            continue
    raise DecodeError(f"{path}: no frame of its video stream can be decoded")


def _timeline(
    container: InputContainer, stream: VideoStream, packets: Packets, fps: float | None
) -> tuple[Timeline, list[str]]:
    """Return the times of the frames, and what the user should know about them."""
    flags, unit = container.format.flags, float(stream.time_base or 0)
    timeline = None
    if not flags & _NO_TIMES:
        timeline = Timeline.of_packets(
            packets,
            unit,
            None if container.start_time is None else container.start_time / av.time_base,
            # AVI numbers its frames in decoding order, and that is all.
            by_number=container.format.name == "avi"
            and (
                stream.codec_context.has_b_frames
                or not np.array_equal(packets["presented"], packets["decoded"])
            ),
            broadcast=bool(flags & _BROADCAST),
        )
    if timeline is None:
        rate = fps or float(stream.guessed_rate or _ASSUMED_FPS)
        said = f"its frames have no times: {rate:g} frames per second are assumed. "
        advice = "Pass --fps if that is wrong"
        counted = Timeline.counted(len(packets), rate)
        return counted, [] if fps else [said + advice]
    warnings = []
    if timeline.clocks > 1:
        warnings.append(
            f"its clock starts again or jumps: {timeline.clocks} recordings in one file, of which "
            f"each is taken to follow the one before it without a pause"
        )
    steps = np.diff(timeline.times, append=timeline.times[-1])
    longest, usual_steps = _LONG_PAUSE
    if steps.max() >= max(longest, usual_steps / timeline.fps):
        before = timeline.times[steps.argmax()]
        warnings.append(f"no frame for {steps.max():.0f} s after {before:.1f} s")
    return timeline, warnings


def promised_duration(path: Path) -> float | None:
    """Return the seconds that a file's header promises, which may be wrong; None if it has none.

    Takes milliseconds, where `probe` passes over the whole file.
    """
    try:
        with open_video(path) as (container, stream):
            return _promised_duration(container, stream) or None
    except (DecodeError, av.FFmpegError, OSError):
        return None


def _promised_duration(container: InputContainer, stream: VideoStream) -> float:
    """Return the seconds of video that the header promises, 0 if it does not say."""
    if container.format.name == "avi" and stream.frames:  # its duration is that of its index
        return float(stream.frames * (stream.time_base or 0))
    if stream.duration:
        return float(stream.duration * (stream.time_base or 0))
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, tag.groups())
        # Matroska says when it ends, on a clock that need not start at 0.
        return 3600 * hours + 60 * minutes + seconds - (container.start_time or 0) / av.time_base
    # That of the container is also that of the sound, which may be longer.
    alone = len(container.streams) == 1
    return (container.duration or 0) / av.time_base if alone else 0.0


def _timecode(container: InputContainer) -> str:
    """Return the timecode of the first frame, as 10:00:00:00; empty if the file has none."""
    for metadata in (*(stream.metadata for stream in container.streams), container.metadata):
        for key, value in metadata.items():
            if key.lower() == "timecode" and TIMECODE.fullmatch(value):  # Matroska: TIMECODE
                return value
    return ""


def _upright(frame: VideoFrame) -> tuple[tuple[str, str], ...]:
    """Return FFmpeg's filters that turn a frame as its display matrix asks, as ffmpeg does."""
    matrix = cast(Any, frame.side_data).get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return ()
    # (x, y) is displayed at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, "=i4")[:5].tolist()
    across, down = math.hypot(a, c), math.hypot(b, d)
    stays = (("null", ""),)  # decord would turn some of these, -0.2 degrees for example
    if not across or not down:
        return stays
    angle = round(math.degrees(math.atan2(b / down, a / across)))
    quarters = round(angle / 90)
    if abs(angle - 90 * quarters) > (angle == 1):  # ffmpeg ignores 1 degree, but not -1
        return (("rotate", f"{angle}*PI/180"),)
    if quarters % 2:
        return (("transpose", str((c < 0) + 2 * (b < 0))),)
    flips = [(name, "") for name, scale in (("hflip", a), ("vflip", d)) if scale < 0]
    return tuple(flips) or (stays if b or c else ())
