// Shows what /ui/events says. All text is set as text; nothing is fetched but from this node.
"use strict";

const $ = (id) => document.getElementById(id);
let latest = null;
let asking = null;

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function rows(id, lines) {
  $(id).replaceChildren(...lines.map((cells) => {
    const row = make("tr");
    row.append(...cells.map((cell) => (cell instanceof Node ? cell : make("td", cell))));
    return row;
  }));
}

function facts(id, pairs) {
  const list = typeof id === "string" ? $(id) : id;
  list.replaceChildren(...pairs.filter((pair) => pair[1] !== null && pair[1] !== undefined).flatMap((pair) => [
    make("dt", pair[0]), make("dd", pair[1], pair[2]),
  ]));
  return list;
}

function bytes(count) {
  if (typeof count !== "number") return "unknown";
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return (unit === 0 ? String(count) : count.toFixed(1)) + " " + units[unit];
}

const clock = (milliseconds) => new Date(milliseconds).toLocaleTimeString();
const isLeader = (member) => member.role === "leader" || member.role === "standby_leader";
const works = (member) => member.state === "running" || member.state === "streaming";

function view() {
  const node = latest.node.snapshot;
  const members = latest.cluster ? latest.cluster.members : [];
  return { node, members, leader: members.find(isLeader), settings: node.cluster ? node.cluster.settings : null };
}

function verdict() {
  const { node, members, leader, settings } = view();
  const well = members.filter(works);
  let text, kind;
  if (!node.store_has_quorum) {
    text = "This node hears no majority of the store. It shows what it knew last."; kind = "bad";
  } else if (!leader) {
    text = "Nobody leads: clients cannot write. The decisions below say what is waited for."; kind = "bad";
  } else if (!works(leader)) {
    text = leader.name + " leads but is " + leader.state + "."; kind = "warn";
  } else if (well.length < members.length) {
    text = "Writes go to " + leader.name + ". Not well: " +
      members.filter((member) => !works(member)).map((member) => member.name + " (" + member.state + ")").join(", ") + "."; kind = "warn";
  } else {
    text = "Healthy. Writes go to " + leader.name + "."; kind = "good";
  }
  if (settings && settings.pause) text += " Paused: howdah keeps its hands off.";
  $("verdict").textContent = text;
  $("verdict").className = kind;
}

function card(member) {
  const article = make("article", undefined, "card" + (isLeader(member) ? " leader" : works(member) ? "" : " lost"));
  article.dataset.member = member.name;
  article.dataset.role = member.role;
  const title = make("h3", member.name);
  title.append(make("span", member.role.replaceAll("_", " ")));
  const node = latest.node.snapshot;
  const own = member.name === node.name;
  const task = own && node.task ? node.task.kind + (node.task.bytes_total ? " " + bytes(node.task.bytes_done) + " of " + bytes(node.task.bytes_total) : "") : null;
  const list = facts(make("dl"), [
    ["State", member.state, works(member) ? "good" : "bad"],
    ["Timeline", member.timeline],
    ["Behind", isLeader(member) ? null : bytes(member.lag), member.lag > 0 ? "warn" : ""],
    ["Not received", isLeader(member) || member.receive_lag === undefined ? null : bytes(member.receive_lag)],
    ["Doing", task],
    ["Restart", member.pending_restart ? "pending" : null, "warn"],
    ["Tags", member.tags ? Object.entries(member.tags).map((tag) => tag.join("=")).join(", ") : null],
    ["PostgreSQL", member.host ? member.host + ":" + member.port : null],
  ]);
  article.append(title, list);
  if (member.api_url && !own) {
    const link = make("a", "its dashboard");
    link.href = new URL("/ui", member.api_url).href;
    const line = make("p", undefined, "quiet");
    line.append(link);
    article.append(line);
  } else if (own) {
    article.append(make("p", "this node", "quiet"), ownActions(member));
  }
  return article;
}

// What can be done to this node's own PostgreSQL; the others have their dashboards.
function ownActions(member) {
  const bar = make("div", undefined, "actions");
  const restart = make("button", "Restart");
  restart.id = "restart";
  restart.type = "button";
  restart.disabled = !works(member);
  restart.addEventListener("click", () => askRestart(member));
  bar.append(restart);
  if (!isLeader(member)) {
    const copy = make("button", "New copy");
    copy.id = "reinit";
    copy.type = "button";
    copy.disabled = !view().leader;
    copy.addEventListener("click", () => askReinit(member));
    bar.append(copy);
  }
  return bar;
}

const LOSSES = { nothing: "Lost: nothing.", unknown: "Lost: cannot be told." };

function lossText(loss) {
  if (typeof loss === "string") return LOSSES[loss] || "";
  if (loss.at_least) return loss.at_least.bytes === 0 ? "Lost: nothing known." : "Lost: " + bytes(loss.at_least.bytes) + " or more.";
  return loss.given_up ? "Given up: " + bytes(loss.given_up.bytes) + " that nobody had received." : "";
}

// One entry of the timeline, its parts as wide as they were long.
function happened(entry) {
  const item = make("li");
  const from = entry.other ? (entry.kind === "rejoin" ? ", follows " : ", after ") + entry.other : "";
  const title = make("p");
  title.append(make("strong", entry.kind + " " + entry.node), from + ", in " + entry.total_ms + " ms, " + new Date(entry.at).toLocaleString());
  const parts = ["detect", "decide", "fence", "promote", "route"].filter((name) => entry.phases[name + "_ms"] > 0);
  const bar = make("div", undefined, "phases");
  bar.append(...parts.map((name) => {
    const milliseconds = entry.phases[name + "_ms"];
    const part = make("span", name + " " + milliseconds + " ms");
    part.title = part.textContent;
    part.style.flexGrow = milliseconds;
    return part;
  }));
  const why = [entry.cause.sentence, entry.choice ? entry.choice.sentence : null].filter(Boolean).join("; ");
  item.append(title, bar, make("p", why + ". " + lossText(entry.loss), "quiet"));
  return item;
}

function show() {
  const { node, members, leader, settings } = view();
  const cluster = node.cluster;
  document.title = (leader ? leader.name + " leads " : "nobody leads ") + node.scope;
  $("scope").textContent = node.scope + ", seen by " + node.name;
  verdict();
  // Who has come to a button by keyboard stays there.
  const focused = document.activeElement ? document.activeElement.id : "";
  $("members").replaceChildren(...members.map(card));
  if (["restart", "reinit"].includes(focused) && $(focused)) $(focused).focus();
  $("switchover").disabled = !leader || !members.some((member) => !isLeader(member) && works(member));
  $("pause").disabled = !settings;
  $("pause").textContent = settings && settings.pause ? "Resume" : "Pause";

  const sync = cluster ? cluster.sync : null;
  if (!settings || settings.synchronous_mode === "off") {
    $("sync").textContent = "Asynchronous: a commit is acknowledged when the primary has it. If the primary's host is lost, what no replica had received is lost with it.";
  } else if (!sync || sync.standbys.length === 0) {
    $("sync").textContent = "Synchronous mode " + settings.synchronous_mode + ", but no standby is confirmed: commits are on the primary alone.";
  } else if (sync.quorum !== null && sync.quorum !== undefined) {
    const needed = sync.standbys.length - sync.quorum;
    $("sync").textContent = "Quorum " + needed + " of " + sync.standbys.length + " (" + sync.standbys.join(", ") + "): a commit is acknowledged when the primary and any " +
      needed + " of them have it. Any " + needed + (needed === 1 ? " node" : " nodes") + " may die with zero loss.";
  } else {
    $("sync").textContent = "Synchronous with " + sync.standbys.join(", ") + ": a commit is acknowledged when the primary and each of them have it.";
  }

  const remaining = latest.node.permit_remaining_seconds;
  facts("lease", [
    ["Leader", leader ? leader.name : "nobody", leader ? "" : "bad"],
    ["Term", cluster && cluster.leader ? cluster.leader.term : null],
    ["Permit", remaining !== null && remaining !== undefined ? remaining.toFixed(1) + " s left, renewed all the time" : null],
    ["Lease", node.lock.ttl + " s: so long after a leader has vanished another may lead"],
    ["Asked for", cluster && cluster.switchover ? "a change to " + (cluster.switchover.candidate || "the best candidate") : null, "warn"],
  ]);

  const router = latest.node.router;
  $("routing").hidden = !router;
  if (router) facts("routes", [["Writes", router.primary], ["Reads", router.replicas]].filter((port) => port[1]).flatMap(routed));

  const raft = node.raft;
  rows("raft", raft.members.map((member) => [member.name, member.addr, member.voter ? "yes" : "not yet", member.name === raft.leader ? "leads" : ""]));
  $("raft-facts").textContent = "Raft term " + raft.term + ", log " + raft.last_log_index + ", applied " + raft.applied_index +
    (cluster ? ", revision " + cluster.revision : "") + ".";
  rows("decisions", node.decisions.slice(-15).reverse().map((row) => [make("td", clock(row.at), "when"), row.action, row.sentence]));
  const timeline = (latest.timeline || []).slice().reverse();
  $("no-timeline").hidden = timeline.length > 0;
  $("timeline").replaceChildren(...timeline.map(happened));
  const history = (latest.history || []).slice(-10).reverse();
  $("no-history").hidden = history.length > 0;
  rows("history", history.map((row) => [row[0], typeof row[1] === "number" ? lsn(row[1]) : row[1], row[3] || "", row[4] || ""]));
  const pending = members.filter((member) => member.pending_restart).map((member) => member.name);
  $("restart-pending").hidden = pending.length === 0;
  $("restart-pending").textContent = "Waits for a restart: " + pending.join(", ");
  facts("settings", cluster && cluster.settings_json ? flatten(cluster.settings_json) : []);
}

const lsn = (position) => Math.floor(position / 4294967296).toString(16).toUpperCase() + "/" + (position % 4294967296).toString(16).toUpperCase();

// One port of the router: where it leads to, who waits, and what each backend has had.
function routed([what, port]) {
  const counts = port.held + " held now, " + port.held_total + " so far, " + port.refused_total + " turned away";
  return [
    [what + " on " + port.listen, port.targets.length > 0 ? "lead to " + port.targets.join(", ") + "; " + counts : "wait: " + port.waits_for + "; " + counts,
      port.targets.length > 0 ? "" : "warn"],
    ...port.backends.map((backend) => ["at " + backend.name, backend.sessions + " sessions now, " + backend.sessions_total + " so far, " +
      backend.drained_total + " ended at a boundary, " + backend.reset_total + " reset, " + bytes(backend.bytes_from_clients) + " in, " + bytes(backend.bytes_to_clients) + " out"]),
  ];
}

function flatten(value, prefix) {
  if (value === null || typeof value !== "object") return [[prefix || "", String(value)]];
  return Object.entries(value).flatMap(([name, inner]) => flatten(inner, prefix ? prefix + "." + name : name));
}

// Asking first: what will happen, in bytes and seconds.
function ask(title, text, candidates, consequence, act) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-choice").hidden = !candidates;
  $("candidate").replaceChildren(...(candidates || []).map((name) => { const option = make("option", name); option.value = name; return option; }));
  $("ask-outcome").textContent = "";
  $("ask-yes").disabled = false;
  $("ask-no").textContent = "Cancel";
  const say = () => { $("ask-consequence").textContent = consequence($("candidate").value); };
  $("candidate").onchange = say;
  say();
  asking = act;
  $("ask").showModal();
}

async function send(method, path, body) {
  const answer = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text || "refused with status " + answer.status);
  return text;
}

async function go() {
  $("ask-yes").disabled = true;
  $("ask-outcome").textContent = "Working.";
  try {
    const said = await asking($("candidate").value);
    $("ask-outcome").textContent = said.startsWith("{") ? "Done." : said;
  } catch (error) {
    $("ask-outcome").textContent = error.message;
    $("ask-yes").disabled = false;
  }
  $("ask-no").textContent = "Close";
}

function askSwitchover() {
  const { members, leader, node } = view();
  const candidates = members.filter((member) => !isLeader(member) && works(member)).map((member) => member.name);
  ask("Switchover", leader.name + " hands over and becomes a replica.", candidates, (name) => {
    const candidate = members.find((member) => member.name === name);
    return name + " is " + bytes(candidate ? candidate.lag : undefined) + " behind and receives them first: no acknowledged commit is lost. " +
      "Clients cannot write for some tenths of a second, and at most " + node.lock.ttl + " s if something goes wrong half way. Sessions on " + leader.name + " are ended.";
  }, (name) => send("POST", "/switchover", { leader: leader.name, candidate: name }));
}

function askRestart(member) {
  const { node } = view();
  const pending = Object.keys(node.postgres ? node.postgres.pending_restart : {});
  ask("Restart", "PostgreSQL of " + member.name + " is stopped and started again.", null, () => {
    const brings = pending.length > 0 ? " It brings " + pending.join(", ") + " into force." : " No setting waits for it.";
    const cost = isLeader(member) ?
      "Clients cannot write for some tenths of a second, or for as long as its checkpoint takes; all sessions on it end. 0 bytes are lost." :
      "Sessions on it end; it lacks what is written meanwhile for some seconds and then receives it. 0 bytes are lost.";
    return cost + brings;
  }, () => send("POST", "/restart", {}));
}

function askReinit(member) {
  const { leader } = view();
  ask("New copy", "All data of " + member.name + " is copied again from " + leader.name + ".", null,
    () => "It is " + bytes(member.lag) + " behind now. Until the copy is there it confirms no commits and cannot take over: count on one node less for as long as the whole database takes to be copied, minutes rather than seconds if it is large. " +
      "Its present directory is moved aside; 0 bytes are deleted.",
    () => send("POST", "/reinitialize", {}));
}

function askPause() {
  const paused = view().settings.pause;
  ask(paused ? "Resume" : "Pause", paused ? "howdah looks after the cluster again." : "howdah keeps its hands off PostgreSQL.", null,
    () => paused ? "If the leader is gone meanwhile, another one may be promoted at once." : "If the primary fails there is no failover until you resume: clients cannot write until then.",
    () => send("PATCH", "/config", { pause: paused ? null : true }));
}

$("switchover").addEventListener("click", askSwitchover);
$("pause").addEventListener("click", askPause);
$("ask-yes").addEventListener("click", go);

function follow() {
  const source = new EventSource("/ui/events");
  source.onopen = () => { $("link").textContent = "Live."; };
  source.onmessage = (event) => {
    latest = JSON.parse(event.data);
    $("link").textContent = "Live. As of " + clock(latest.node.snapshot.at) + ".";
    show();
  };
  // The browser connects again by itself.
  source.onerror = () => { $("link").textContent = "This node does not answer. What is shown is old; trying again."; };
}

follow();
