/** The assistant's sound. */

const IN_THE_AIR_MS = 1_500; // after a hiccup of the network the browser may still hold back so much sound

export class Speaker {
  #audio;
  #timer = 0;

  /** @param {HTMLAudioElement} audio */
  constructor(audio) {
    this.#audio = audio;
  }

  /** @param {MediaStream} stream @param {(sentence: string | null) => void} tell what the user has to do, then null */
  play(stream, tell) {
    this.#audio.srcObject = stream;
    this.#audio.play().catch(({ name }) => {
      if (name !== "NotAllowedError") return;
      tell("The browser waits for a click before it plays sound. Click anywhere.");
      document.addEventListener("pointerdown", () => this.#audio.play().then(() => tell(null)), { once: true });
    });
  }

  stop() {
    this.#audio.srcObject = null;
  }

  /** Silence at once, also of what was sent before an interruption and has not been played. */
  hush() {
    this.#audio.muted = true;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.unhush(), IN_THE_AIR_MS);
  }

  /** The assistant speaks again. */
  unhush() {
    clearTimeout(this.#timer);
    this.#audio.muted = false;
  }
}
