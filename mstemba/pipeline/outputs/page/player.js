// The video, or a clock of the page's own where there is none that plays.

// Seconds. Browsers round the time of a video; Firefox does it to this.
const ROUNDING = 0.002;
// A file that the user chooses may be as much longer or shorter than the video: seconds, share of it.
const OTHER_LENGTH = [2, 0.05];

class Player {
  /**
   * `moved` is called with the time whenever it changes; `failed` when there is no picture, or with
   * its length when it is quite another video.
   */
  constructor(video, duration, { moved, failed }) {
    this.video = video;
    this.duration = duration;
    this.moved = moved;
    this.failed = failed;
    this.clock = { time: 0, since: null }; // `since`: when it was started, null while it stands
    this.usesVideo = false;
    video.addEventListener("error", () => this.fail());
    video.addEventListener("loadedmetadata", () => {
      const [seconds, share] = OTHER_LENGTH, off = Math.abs(video.duration - duration);
      if (this.chosen && Number.isFinite(off) && off > Math.max(seconds, share * duration)) this.fail(video.duration);
      else if (this.clock.time > 0) video.currentTime = this.clock.time;
    });
    video.addEventListener("loadeddata", () => {
      // Sound alone plays where the picture's codec is unknown. WebKit may know the size later.
      const { src } = video;
      setTimeout(() => { if (video.src === src && !video.videoWidth) this.fail(); }, 1000);
    });
    for (const event of ["seeked", "timeupdate", "pause"]) {
      video.addEventListener(event, () => this.usesVideo && moved(this.time));
    }
    video.addEventListener("play", () => this.usesVideo && this.tick());
  }

  /** Show the video at this address, one that the user has chosen, or none. */
  load(source, chosen = false) {
    this.chosen = chosen;
    this.clock = { time: this.time, since: null };
    this.usesVideo = Boolean(source);
    if (source) this.video.src = source;
    else this.failed();
  }

  fail(otherLength) {
    if (!this.usesVideo) return;
    this.clock = { time: this.time, since: null };
    this.usesVideo = false;
    this.video.removeAttribute("src");
    this.video.load(); // or its sound would go on
    this.failed(otherLength);
  }

  get time() {
    if (this.usesVideo) {
      const { readyState, paused, currentTime } = this.video, sent = this.clock.time;
      if (!readyState) return sent;
      // A video that was sent to a time stands there, until it plays or its own buttons move it.
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
    this.moved(time);
  }

  toggle() {
    if (this.usesVideo) {
      // Refused while the file is not playable; the error event says so.
      if (this.video.paused) this.video.play().catch(() => this.moved(this.time));
      else this.video.pause();
      return;
    }
    const time = this.time;
    const starts = this.clock.since === null;
    this.clock = {
      time: starts && time >= this.duration ? 0 : time,
      since: starts ? performance.now() : null,
    };
    this.moved(time);
    if (starts) this.tick();
  }

  tick() {
    if (!this.usesVideo && this.time >= this.duration) this.clock = { time: this.duration, since: null };
    this.moved(this.time);
    if (this.playing) requestAnimationFrame(() => this.tick());
  }
}

/** The video that is embedded in the page, as an address; null when there is none. */
function embeddedVideo() {
  const parts = [...document.querySelectorAll("script.video-part")];
  if (!parts.length) return null;
  const bytes = parts.map((part) => fromBase64(part.textContent));
  for (const part of parts) part.remove(); // the text is of no use any more
  return URL.createObjectURL(new Blob(bytes));
}
