// The video, or a clock if there is none that plays.

// Seconds to which Firefox rounds the time of a video.
const ROUNDING = 0.002;
// Tolerance in the length of a file that the user chooses: seconds, and fraction of the video.
const OTHER_LENGTH = [2, 0.05];
// Seconds that the player finds more than there should be before they count: sound may last longer.
const LONGER = 0.5;

class Player {
  /**
   * `onTime` is called with the time whenever it changes; `onLength` if the file lasts longer than
   * `duration`; `onFailure` if there is no picture, with the length of the file if that does not
   * match this video.
   */
  constructor(video, duration, { onTime, onLength, onFailure }) {
    this.video = video;
    this.duration = duration;
    this.onTime = onTime;
    this.onFailure = onFailure;
    this.clock = { time: 0, since: null }; // `since`: when it was started, null while it is stopped
    this.usesVideo = false;
    video.addEventListener("error", () => this.fail());
    video.addEventListener("loadedmetadata", () => {
      const [seconds, share] = OTHER_LENGTH, off = Math.abs(video.duration - duration);
      if (this.chosen && Number.isFinite(off) && off > Math.max(seconds, share * duration)) {
        this.fail(video.duration);
        return;
      }
      if (this.clock.time > 0) video.currentTime = this.clock.time;
      if (Number.isFinite(video.duration) && video.duration > this.duration + LONGER) {
        this.duration = video.duration;
        onLength();
      }
    });
    video.addEventListener("loadeddata", () => {
      // If the codec of the picture is unknown, only the sound plays. WebKit may know the size later.
      const { src } = video;
      setTimeout(() => { if (video.src === src && !video.videoWidth) this.fail(); }, 1000);
    });
    for (const event of ["seeked", "timeupdate", "pause"]) {
      video.addEventListener(event, () => this.usesVideo && onTime(this.time));
    }
    video.addEventListener("play", () => this.usesVideo && this.tick());
  }

  /** Show the video at an address, which the user may have chosen, or none. */
  load(source, chosen = false) {
    this.chosen = chosen;
    this.clock = { time: this.time, since: null };
    this.usesVideo = Boolean(source);
    if (source) this.video.src = source;
    else this.onFailure();
  }

  fail(otherLength) {
    if (!this.usesVideo) return;
    this.clock = { time: this.time, since: null };
    this.usesVideo = false;
    this.video.removeAttribute("src");
    this.video.load(); // otherwise its sound would continue
    this.onFailure(otherLength);
  }

  get time() {
    if (this.usesVideo) {
      const { readyState, paused, currentTime } = this.video, sent = this.clock.time;
      if (!readyState) return sent;
      // A paused video is at the time that was set, until it plays or its own controls move it.
      return paused && Math.abs(currentTime - sent) <= ROUNDING + 1e-6 ? sent : currentTime;
    }
    const { time, since } = this.clock;
    return since === null ? time : Math.min(this.duration, time + (performance.now() - since) / 1000);
  }

  get playing() {
    return this.usesVideo ? !this.video.paused : this.clock.since !== null;
  }

  seek(time) {
    time = clamp(time, 0, this.duration);
    this.clock = { time, since: this.clock.since === null ? null : performance.now() };
    if (this.usesVideo && this.video.readyState) this.video.currentTime = time;
    this.onTime(time);
  }

  toggle() {
    if (this.usesVideo) {
      // Refused while the file is not playable; the error event says so.
      if (this.video.paused) this.video.play().catch(() => this.onTime(this.time));
      else this.video.pause();
      return;
    }
    const time = this.time;
    const starts = this.clock.since === null;
    this.clock = {
      time: starts && time >= this.duration ? 0 : time,
      since: starts ? performance.now() : null,
    };
    this.onTime(time);
    if (starts) this.tick();
  }

  tick() {
    if (!this.usesVideo && this.time >= this.duration) this.clock = { time: this.duration, since: null };
    this.onTime(this.time);
    if (this.playing) requestAnimationFrame(() => this.tick());
  }
}

/** Return an address for the video embedded in the page, or null. */
function openEmbeddedVideo() {
  const parts = [...document.querySelectorAll("script.video-part")];
  if (!parts.length) return null;
  const bytes = parts.map((part) => decodeBase64(part.textContent));
  for (const part of parts) part.remove(); // free the memory
  return URL.createObjectURL(new Blob(bytes));
}
