"use strict";
const TEXTS = {
  en: {
    skip: "To the question", what: "Ask a video, and see the evidence: when, and where in the picture.", language: "Language",
    key: "The server's key", enter: "Enter", choose: "Choose a video", drop: "or drop one here", file: "Video", remove: "Delete it",
    question: "Question", part: "Part of the video", start: "from (s)", end: "to (s)", frames: "frames at most", send: "Ask", stop: "Stop",
    earlier: "Earlier questions", none: "No video yet", sending: "Sending the video …", waiting: "Reading the video …", writing: "Answering …",
    done: "Answered", stopped: "Stopped", saved: "Your review is saved", report: "The answer with its evidence", lost: "The server does not answer",
  },
  zh: {
    skip: "到问题", what: "向视频提问,并查看证据:何时,以及画面中的何处。", language: "语言",
    key: "服务器密钥", enter: "进入", choose: "选择视频", drop: "或拖放到这里", file: "视频", remove: "删除",
    question: "问题", part: "视频的一部分", start: "从(秒)", end: "到(秒)", frames: "最多帧数", send: "提问", stop: "停止",
    earlier: "之前的问题", none: "还没有视频", sending: "正在上传视频……", waiting: "正在读取视频……", writing: "正在回答……",
    done: "已回答", stopped: "已停止", saved: "您的审核已保存", report: "答案及其证据", lost: "服务器没有响应",
  },
};
const byId = (id) => document.getElementById(id);
const [ask, file, question, report, live, state, error] = ["ask", "file", "question", "report", "live", "state", "error"].map(byId);
let language = "en", model = "", running = null, said = "";

function translate(to) {
  language = to in TEXTS ? to : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  byId("language").value = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = TEXTS[language][element.dataset.text];
  report.title = TEXTS[language].report;
  tell(said);
  localStorage.setItem("language", language);
}

function tell(word) {
  said = word;
  state.textContent = word ? TEXTS[language][word] : "";
}

function fail(message) {
  error.textContent = message;
  error.hidden = !message;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (reason) {
    if (reason.name === "AbortError") throw reason;
    throw new Error(TEXTS[language].lost);
  }
  if (response.ok) return response;
  if (response.status === 401) { byId("login").hidden = false; byId("key").focus(); }
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `${response.status} ${response.statusText}`);
}

async function showFiles(chosen) {
  const { data } = await (await call("/v1/files")).json();
  file.replaceChildren(...data.map((one) => new Option(`${one.filename} · ${one.o3.duration_s.toFixed(1)} s`, one.id)));
  if (!data.length) file.append(new Option(TEXTS[language].none, ""));
  if (chosen) file.value = chosen;
  byId("send").disabled = !data.length;
}

function upload(chosen) {
  if (!chosen) return;
  fail(""); tell("sending");
  const bar = byId("sent"), form = new FormData(), request = new XMLHttpRequest();  // fetch does not tell how far it is
  form.append("purpose", "user_data"); form.append("file", chosen);
  bar.hidden = false; bar.value = 0;
  request.upload.onprogress = (event) => { if (event.lengthComputable) bar.value = event.loaded / event.total; };
  request.onerror = () => { bar.hidden = true; tell(""); fail(TEXTS[language].lost); };
  request.onload = async () => {
    bar.hidden = true; tell("");
    let body = null;
    try { body = JSON.parse(request.responseText); } catch { /* told below */ }
    if (request.status !== 200) return fail(body?.error?.message ?? `${request.status}`);
    await showFiles(body.id).catch((reason) => fail(reason.message));
    question.focus();
  };
  request.open("POST", "/v1/files");
  request.send(form);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
  }
}

function number(id) {
  const { value } = byId(id);
  return value === "" ? {} : { [id]: Number(value) };
}

async function send() {
  const words = question.value.trim();
  if (running || !words || !file.value) return;
  running = new AbortController();
  fail(""); tell("waiting");
  byId("stop").hidden = false; byId("send").disabled = true; report.hidden = true; live.hidden = false;
  byId("asked").textContent = words; byId("answer").textContent = ""; byId("thought").textContent = ""; byId("search").hidden = true;
  const content = [{ type: "video_url", video_url: { url: file.value } }, { type: "text", text: words }];
  const body = { model, stream: true, messages: [{ role: "user", content }], ...number("start_s"), ...number("end_s"), ...number("max_frames") };
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: running.signal };
    let found = null;
    for await (const piece of events(await call("/v1/chat/completions", options))) {
      if (piece.error) throw new Error(piece.error.message);
      const [choice] = piece.choices;
      if (!choice) continue;
      byId("thought").textContent += choice.delta.reasoning_content ?? "";
      byId("answer").textContent += choice.delta.content ?? "";
      if (choice.delta.reasoning_content || choice.delta.content) tell("writing");
      if (choice.o3?.progress) showProgress(choice.o3.progress);
      if (choice.o3?.report) found = choice.o3;
    }
    tell("done");
    if (found) { remember(words, found); show(found.report); }
  } catch (reason) {
    if (reason.name === "AbortError") tell("stopped"); else { tell(""); fail(reason.message); }
  } finally {
    running = null;
    byId("stop").hidden = true; byId("send").disabled = false; byId("search").hidden = true;
  }
}

function showProgress({ what, done, total }) {
  byId("search").hidden = false;
  byId("search").title = what;
  byId("search").firstElementChild.style.width = `${Math.min(100, 100 * done / Math.max(total, 1e-9))}%`;
}

function show(path) {
  if (!/^\/v1\/answers\/answer-[0-9a-f]{24}\/report$/.test(path)) return;
  report.src = path; report.hidden = false;
}

function remember(words, found) {
  const all = earlier();
  all.unshift({ question: words, answer: found.answer, report: found.report });
  localStorage.setItem("earlier", JSON.stringify(all.slice(0, 50)));
  showEarlier();
}

function earlier() {
  try { return JSON.parse(localStorage.getItem("earlier")) ?? []; } catch { return []; }
}

function showEarlier() {
  const all = earlier();
  byId("earlier").hidden = !all.length;
  byId("history").replaceChildren(...all.map((one) => {
    const [item, button, answer] = ["li", "button", "span"].map((tag) => document.createElement(tag));
    button.type = "button"; button.textContent = one.question; answer.textContent = one.answer;
    button.addEventListener("click", () => { live.hidden = true; show(one.report); report.scrollIntoView({ block: "start" }); });
    item.append(button, answer);
    return item;
  }));
}

addEventListener("message", async (event) => {
  if (event.source !== report.contentWindow || event.origin !== location.origin || !event.data?.review) return;
  const path = new URL(report.src).pathname.replace(/report$/, "review");
  try {
    await call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(event.data.review) });
    tell("saved");
    report.contentWindow.postMessage({ saved: true }, location.origin);
  } catch (reason) {
    report.contentWindow.postMessage({ failed: reason.message }, location.origin);
  }
});
ask.addEventListener("submit", (event) => { event.preventDefault(); send(); });
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("upload").addEventListener("change", (event) => { upload(event.target.files[0]); event.target.value = ""; });
byId("remove").addEventListener("click", async () => {
  if (!file.value) return;
  await call(`/v1/files/${encodeURIComponent(file.value)}`, { method: "DELETE" }).catch((reason) => fail(reason.message));
  await showFiles().catch((reason) => fail(reason.message));
});
byId("language").addEventListener("change", (event) => translate(event.target.value));
byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key: byId("key").value }) };
  try { await call("/session", options); byId("login").hidden = true; fail(""); await start(); } catch (reason) { fail(reason.message); }
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") upload(event.dataTransfer.files[0]);
  });
}

async function start() {
  model = (await (await call("/v1/models")).json()).data[0].id;
  await showFiles();
}

translate(localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
showEarlier();
start().catch((reason) => fail(reason.message)).finally(() => { document.documentElement.dataset.ready = "yes"; });
