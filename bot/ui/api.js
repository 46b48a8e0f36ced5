/**
 * The bot server's HTTP interface. Addresses are relative to the page: it works below a path of a proxy as well. Every
 * failure is a `Problem`: an error whose message is a sentence for the person in front of the page.
 */

const TOKEN_KEY = "triton-voice.token";
const TIMEOUT_MS = 10_000;

/** An error worded for the user. `status` is the HTTP status, 0 when the server did not answer. */
export class Problem extends Error {
  constructor(sentence, status = -1) {
    super(sentence);
    this.name = "Problem";
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN_KEY, token);
}

export function hasToken() {
  return Boolean(sessionStorage.getItem(TOKEN_KEY));
}

/**
 * One request; gives the parsed JSON answer.
 * @param {string} path below `api/`
 * @param {{method?: string, body?: object, signal?: AbortSignal}} options
 */
async function request(path, { method = "GET", body, signal } = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  let response;
  try {
    response = await fetch(`api/${path}`, {
      method,
      headers,
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem("The server does not answer. It may be stopped or restarting.", 0);
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) throw new Problem("The server did not accept this token.", 401);
  const worded = typeof answer.detail === "string";
  throw new Problem(worded ? answer.detail : `The server refused with status ${response.status}.`, response.status);
}

export const getConfig = () => request("config");
export const getHealth = () => request("health");
export const getSession = (id) => request(`session/${encodeURIComponent(id)}`);
export const postOffer = (body, signal) => request("offer", { method: "POST", body, signal });
export const patchOffer = (body, signal) => request("offer", { method: "PATCH", body, signal });
