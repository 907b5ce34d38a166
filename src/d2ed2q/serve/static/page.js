"use strict";

const $ = (id) => document.getElementById(id);
const FOUND = [0, 229, 190];
const state = { card: null, job: null, image: null, maps: {}, view: "overlay", threshold: 128, name: "image", file: null };

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

function say(text) {
  $("status").textContent = text;
}

function rows(table, entries) {
  table.replaceChildren(
    ...entries.map(([name, value]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const cell = document.createElement("td");
      cell.textContent = value;
      row.append(head, cell);
      return row;
    }),
  );
}

async function problem(response) {
  try {
    const body = await response.json();
    return body.error || body.detail || response.statusText;
  } catch {
    return response.statusText;
  }
}

async function pixels(job, name) {
  const response = await fetch(`/jobs/${job}/${name}`, { headers: headers() });
  if (!response.ok) throw new Error(await problem(response));
  const bitmap = await createImageBitmap(await response.blob());
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function readable(name) {
  if (name === "meta") return "Meta learner";
  if (name === "network") return "Network";
  return name.replace("base_", "Base learner ");
}

function choices() {
  const views = [["overlay", "Overlay"], ["image", "Image"], ["probability", "Probability"], ["doubt", "Doubt"]];
  if (state.card.learners.length > 1) views.push(...state.card.learners.map((name) => [`learner-${name}`, readable(name)]));
  const legend = $("views").querySelector("legend");
  $("views").replaceChildren(
    legend,
    ...views.map(([value, text]) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      input.type = "radio";
      input.name = "view";
      input.value = value;
      input.checked = value === state.view;
      input.addEventListener("change", () => show(value));
      label.append(input, ` ${text}`);
      return label;
    }),
  );
}

async function show(view) {
  state.view = view;
  const { maps, job } = state;
  try {
    for (const name of view === "overlay" ? ["probability", "mask"] : [view]) {
      if (!maps[name]) maps[name] = await pixels(job.job, `${name}.png`);
    }
    if (maps !== state.maps || view !== state.view) return; // another image or view was asked for meanwhile
  } catch (error) {
    say(`This cannot be shown: ${error.message}`);
    return;
  }
  draw();
}

function several() {
  return state.card.classes.length > 2;
}

function draw() {
  const canvas = $("canvas");
  const { width, height } = state.image;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  if (state.view !== "overlay") {
    context.putImageData(state.view === "image" ? state.image : state.maps[state.view], 0, 0);
    return;
  }
  const shown = new ImageData(new Uint8ClampedArray(state.image.data), width, height);
  // At the model's own threshold the mask is what the node answers: cut into objects, or without specks.
  const [values, above] =
    several() || state.threshold === own() ? [state.maps.mask.data, 0] : [state.maps.probability.data, state.threshold];
  for (let i = 0; i < values.length; i += 4) {
    if (values[i] > above) {
      for (let c = 0; c < 3; c++) shown.data[i + c] = 0.45 * shown.data[i + c] + 0.55 * FOUND[c];
    }
  }
  context.putImageData(shown, 0, 0);
}

function setThreshold(value) {
  state.threshold = value;
  $("threshold").value = value;
  $("value").textContent = (value / 255).toFixed(2);
}

function own() {
  return Math.round(state.card.threshold * 255);
}

let running = false;

async function segment(file) {
  if (running) return; // results of two images must not mix
  running = true;
  state.file = file;
  $("result").hidden = true;
  say(`Segmenting ${file.name} …`);
  $("choose").disabled = true;
  try {
    const response = await fetch("/segment", {
      method: "POST",
      body: file,
      headers: headers({ Accept: "application/json", "Content-Type": "application/octet-stream" }),
    });
    if (response.status === 401) {
      $("access").hidden = false;
      $("token").focus();
      say("An access token is needed.");
      return;
    }
    if (!response.ok || response.status === 202) throw new Error(await problem(response));
    state.job = await response.json();
    state.maps = {};
    state.name = file.name.replace(/\.[^.]*$/, "");
    state.image = await pixels(state.job.job, "image.png");
    state.view = "overlay";
    setThreshold(own());
    choices();
    await show("overlay");
    $("refused").hidden = !state.job.refused;
    $("segmentation").hidden = !state.job.results.some((name) => name.endsWith("segmentation.dcm"));
    $("slide").hidden = several();
    const total = Object.values(state.job.pixels).reduce((a, b) => a + b, 0);
    rows($("figures"), [
      ...Object.entries(state.job.pixels).slice(1).map(([name, n]) => [name, `${n} pixels, ${((100 * n) / total).toFixed(1)} %`]),
      ...(state.job.objects === undefined ? [] : [["objects", state.job.objects]]),
      ["doubt of the whole image", `${state.job.doubt}${state.card.refuse === null ? "" : ` (refused above ${state.card.refuse})`}`],
      ["size", `${state.job.size[1]} × ${state.job.size[0]}`],
      ["time in the model", `${(1000 * state.job.seconds).toFixed(0)} ms`],
    ]);
    $("result").hidden = false;
    say(state.job.refused ? "Refused: too uncertain." : "Done.");
  } catch (error) {
    say(`${file.name}: ${error.message}`);
  } finally {
    running = false;
    $("choose").disabled = false;
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function download(name, as) {
  const response = await fetch(`/jobs/${state.job.job}/${name}`, { headers: headers() });
  if (!response.ok) say(await problem(response));
  else save(await response.blob(), as);
}

function downloadMask() {
  if (several() || state.threshold === own()) {
    download("mask.png", `${state.name}_mask.png`);
    return;
  }
  const { width, height, data } = state.maps.probability;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const mask = new ImageData(width, height);
  for (let i = 0; i < data.length; i += 4) {
    const value = data[i] > state.threshold ? 255 : 0;
    mask.data.set([value, value, value, 255], i);
  }
  canvas.getContext("2d").putImageData(mask, 0, 0);
  // What the node writes into its own files; the name says it too, to whoever opens none.
  const { card, job } = state;
  const threshold = (state.threshold / 255).toFixed(2);
  const texts = {
    Comment: card.note,
    "Model-SHA256": job.model_sha256,
    Refused: job.refused ? "yes" : "no",
    Threshold: `${threshold} (the model's own: ${card.threshold.toFixed(2)})`,
  };
  const facts = [`at_${threshold}`, job.model_sha256.slice(0, 16), ...(job.refused ? ["refused"] : []), "research_use_only"];
  const name = `${state.name}_mask_${facts.join("_")}.png`;
  canvas.toBlob((blob) => save(withTexts(blob, texts), name), "image/png");
}

async function begin() {
  const response = await fetch("/card");
  state.card = await response.json();
  const { card } = state;
  document.title = `${card.name} – ${card.node}`;
  $("model").textContent = card.name;
  $("note").textContent = card.note.charAt(0).toUpperCase() + card.note.slice(1);
  rows($("card"), [
    ["finds", card.classes.slice(1).join(", ")],
    ["trained on", card.trained_on],
    ["Dice on validation images", `${card.dice.toFixed(3)} (${card.validation_images} images)`],
    ["learners", card.learners.length],
    ["SHA-256", card.sha256],
    ["node", card.node],
  ]);
  $("text").textContent = card.card;
}

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // so that the same file can be chosen again
  if (file) segment(file);
});
$("threshold").addEventListener("input", (event) => {
  setThreshold(Number(event.target.value));
  if (state.view !== "overlay") {
    document.querySelector('input[name="view"][value="overlay"]').checked = true;
    show("overlay");
  } else draw();
});
$("reset").addEventListener("click", () => {
  setThreshold(own());
  draw();
});
$("mask").addEventListener("click", downloadMask);
$("segmentation").addEventListener("click", () => download("segmentation.dcm", `${state.name}_segmentation.dcm`));
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  $("access").hidden = true;
  if (state.file) segment(state.file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) segment(event.dataTransfer.files[0]);
  });
}
begin().catch((error) => say(`The node does not answer: ${error.message}`));
