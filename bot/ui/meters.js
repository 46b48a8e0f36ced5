/** Level meters: the last seconds of one side's loudness as a row of bars. */

const STEP_MS = 60; // one bar
const BAR_PX = 3;
const GAP_PX = 3;
const FLOOR_DB = -56; // quieter is silence
const CEILING_DB = -12; // loud speech

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Meters {
  #context = null;
  #sides; // [{canvas, towards, analyser, source, history}]
  #drawing = false;

  /** @param {{canvas: HTMLCanvasElement, towards: "left" | "right"}[]} sides `towards` tells where the newest bar is */
  constructor(sides) {
    this.#sides = sides.map((side) => ({ ...side, analyser: null, source: null, history: [] }));
    for (const side of this.#sides) new ResizeObserver(() => this.#paint(side)).observe(side.canvas);
    const repaint = () => this.#sides.forEach((side) => this.#paint(side));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  }

  /** Measures these streams, in the order of the sides. */
  attach(streams) {
    this.#context ??= new AudioContext();
    this.#context.resume();
    streams.forEach((stream, index) => {
      const side = this.#sides[index];
      side.source?.disconnect();
      side.source = this.#context.createMediaStreamSource(stream);
      side.analyser = new AnalyserNode(this.#context, { fftSize: 1024 });
      side.source.connect(side.analyser);
    });
    if (!this.#drawing) this.#draw(0);
  }

  detach() {
    for (const side of this.#sides) {
      side.source?.disconnect();
      side.source = side.analyser = null;
      side.history = [];
      this.#paint(side);
    }
  }

  #draw(previous) {
    this.#drawing = this.#sides.some((side) => side.analyser);
    if (!this.#drawing) return;
    requestAnimationFrame((now) => {
      if (now - previous < STEP_MS) return this.#draw(previous);
      for (const side of this.#sides) {
        if (!side.analyser) continue;
        side.history.unshift(loudness(side.analyser));
        this.#paint(side);
      }
      this.#draw(now);
    });
  }

  #paint({ canvas, towards, history }) {
    const ratio = devicePixelRatio;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = getComputedStyle(canvas).color;
    const bars = Math.floor((width + GAP_PX) / (BAR_PX + GAP_PX));
    history.length = Math.min(history.length, bars);
    for (let index = 0; index < bars; index += 1) {
      // Without motion the bars stand still and fill up like a thermometer.
      const level = still.matches ? Number((history[0] ?? 0) * bars > index) : (history[index] ?? 0);
      const tall = BAR_PX + level * (height - BAR_PX) * (still.matches ? 0.5 : 1);
      const x = index * (BAR_PX + GAP_PX);
      pen.globalAlpha = level > 0.02 ? 1 : 0.35;
      pen.beginPath();
      pen.roundRect(towards === "right" ? width - x - BAR_PX : x, (height - tall) / 2, BAR_PX, tall, BAR_PX / 2);
      pen.fill();
    }
  }
}

/** Loudness of the last 20 ms, 0 (silence) to 1 (loud speech), even steps in dB. */
function loudness(analyser) {
  const samples = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(samples);
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  const db = 10 * Math.log10(power + 1e-12);
  return Math.min(1, Math.max(0, (db - FLOOR_DB) / (CEILING_DB - FLOOR_DB)));
}
