/** The choice of voice and language. What was chosen is remembered in this browser. */

const KEYS = { voice: "triton-voice.voice", language: "triton-voice.language" };
const languageNames = new Intl.DisplayNames(["en"], { type: "language" });

/** How people call a voice or a language. */
export const named = {
  voice: (voice) => voice.charAt(0).toUpperCase() + voice.slice(1),
  language: (code) => {
    try {
      return languageNames.of(code);
    } catch {
      return code; // no code of a language
    }
  },
};

export class Picker {
  #kind;
  #select;

  /** @param {"voice" | "language"} kind @param {HTMLSelectElement} select @param {(value: string) => void} onChange */
  constructor(kind, select, onChange) {
    this.#kind = kind;
    this.#select = select;
    select.addEventListener("change", () => {
      localStorage.setItem(KEYS[kind], select.value);
      onChange(select.value);
    });
  }

  /** @param {string[]} values what the server offers @param {string} preset what it begins with */
  offer(values, preset) {
    const kept = localStorage.getItem(KEYS[this.#kind]);
    const chosen = values.includes(kept) ? kept : preset;
    const options = values.map((value) => new Option(named[this.#kind](value), value, false, value === chosen));
    this.#select.replaceChildren(...options);
    this.#select.disabled = false;
  }

  get value() {
    return this.#select.value;
  }
}
