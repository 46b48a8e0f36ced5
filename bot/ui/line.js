/**
 * One WebRTC connection to the bot: audio both ways, and RTVI messages on a data channel. Opened once, closed once.
 */
import { Problem, patchOffer, postOffer } from "./api.js";

const RTVI_VERSION = "2.2.0";
const ABOUT = { library: "triton-voice-ui", library_version: "1" };
const PING_MS = 1_000; // after three seconds without one the server takes the page for lost
const GATHERING_MS = 500; // ICE candidates that come later follow by PATCH
const READY_MS = 20_000; // from the offer to the bot's "ready"
const GLITCH_MS = 3_000; // a connection that heals within this was not lost

const UNREACHABLE =
  "The server answered, but no audio connection came about. A firewall may block UDP between you and the server.";
const UNREADY = "The server answered, but its bot did not get ready in time.";
const LOST = "The connection was lost.";

export class Line {
  #peer;
  #channel;
  #handlers;
  #settle;
  #open; // promise of the bot's "ready"
  #isOpen = false;
  #closed = false;
  #glitch = 0; // timers
  #ping = 0;
  #candidates = []; // ICE candidates that the server does not know yet

  /**
   * @param {MediaStream} microphone
   * @param {RTCIceServer[]} iceServers
   * @param {{track: (stream: MediaStream) => void, session: (id: string) => void, message: (message: object) => void,
   *          broken: (problem: Problem) => void}} handlers `broken` is called once, and only after `open` has resolved
   */
  constructor(microphone, iceServers, handlers) {
    this.#handlers = handlers;
    this.#open = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.#open.catch(() => {}); // `open` reports it; it may fail while the offer is still on its way
    this.#peer = new RTCPeerConnection({ iceServers });
    // Pipecat looks for the microphone in the first transceiver.
    this.#peer.addTransceiver(microphone.getAudioTracks()[0], { direction: "sendrecv", streams: [microphone] });
    this.#peer.ontrack = ({ track }) => handlers.track(new MediaStream([track]));
    this.#peer.onconnectionstatechange = () => this.#follow(this.#peer.connectionState);
    this.#channel = this.#peer.createDataChannel("chat", { ordered: true });
    this.#channel.onopen = () => {
      this.send("client-ready", { version: RTVI_VERSION, about: ABOUT });
      this.#ping = setInterval(() => this.#write(`ping: ${Date.now()}`), PING_MS);
    };
    this.#channel.onclose = () => this.#break(LOST);
    this.#channel.onmessage = ({ data }) => this.#receive(JSON.parse(data));
  }

  /**
   * Connects; resolves when the bot is ready. Throws a Problem, or an abort's reason.
   * @param {{voice: string, language: string, session?: string}} choices
   * @param {AbortSignal} signal closes the line at any time
   */
  async open(choices, signal) {
    signal.addEventListener("abort", () => this.close(), { once: true });
    const peer = this.#peer;
    const timer = setTimeout(() => this.#break(peer.connectionState === "connected" ? UNREADY : UNREACHABLE), READY_MS);
    try {
      await peer.setLocalDescription();
      await this.#gather();
      peer.onicecandidate = ({ candidate }) => candidate?.candidate && this.#candidates.push(candidate);
      const { sdp, type } = peer.localDescription;
      const answer = await postOffer({ sdp, type, request_data: choices }, signal);
      this.#handlers.session(answer.session);
      await peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
      peer.onicecandidate = ({ candidate }) => candidate?.candidate && this.#trickle(answer.pc_id, [candidate], signal);
      if (this.#candidates.length) this.#trickle(answer.pc_id, this.#candidates, signal);
      await this.#open;
    } catch (error) {
      this.close();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Sends an RTVI message; on a line that is not open it is dropped. */
  send(type, data) {
    this.#write(JSON.stringify({ label: "rtvi-ai", type, id: crypto.randomUUID(), data }));
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#glitch);
    clearInterval(this.#ping);
    this.#peer.close();
    this.#settle.reject(new Problem(LOST));
  }

  #write(text) {
    if (this.#channel.readyState === "open") this.#channel.send(text);
  }

  #receive(message) {
    if (message.type === "signalling") {
      if (message.message?.type === "peerLeft") this.#break(LOST);
      return;
    }
    if (message.type === "bot-ready") {
      this.#isOpen = true;
      this.#settle.resolve();
    }
    this.#handlers.message(message);
  }

  #follow(state) {
    clearTimeout(this.#glitch);
    const sentence = this.#isOpen ? LOST : UNREACHABLE;
    if (state === "failed") this.#break(sentence);
    if (state === "disconnected") this.#glitch = setTimeout(() => this.#break(sentence), GLITCH_MS);
  }

  #break(sentence) {
    if (this.#closed) return;
    const problem = new Problem(sentence);
    this.#settle.reject(problem);
    this.close();
    if (this.#isOpen) this.#handlers.broken(problem);
  }

  #gather() {
    return new Promise((resolve) => {
      const check = () => this.#peer.iceGatheringState === "complete" && resolve();
      this.#peer.onicegatheringstatechange = check;
      setTimeout(resolve, GATHERING_MS);
      check();
    });
  }

  #trickle(pc_id, found, signal) {
    const candidates = found.map(({ candidate, sdpMid, sdpMLineIndex }) => ({
      candidate,
      sdp_mid: sdpMid,
      sdp_mline_index: sdpMLineIndex,
    }));
    patchOffer({ pc_id, candidates }, signal).catch(() => {}); // if these were needed, the line fails and says so
  }
}
