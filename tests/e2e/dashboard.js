// Drives the dashboard as a person would. Arguments: playwright's directory, where screenshots go, a node's address,
// the name of the node that shall lead.
"use strict";

const assert = require("node:assert");
const { chromium } = require(process.argv[2]);
const [shots, address, candidate] = process.argv.slice(3);
const browserPath = process.env.CHROMIUM || "/usr/bin/chromium";
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

const leads = (name) => `article[data-role=leader][data-member="${name}"]`;

async function run(browser) {
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 }, colorScheme: "light" });
  const complaints = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(`http://${address}/`)) complaints.push(`asks ${request.url()}`); });

  await page.goto(`http://${address}/ui`);
  await page.waitForSelector("article[data-role=leader]");
  await page.waitForFunction(() => document.getElementById("verdict").className === "good");
  assert.strictEqual(await page.locator("article").count(), 3);
  assert.strictEqual(await page.locator(leads(candidate)).count(), 0);
  // Gone after a reload, so it proves that there was none.
  await page.evaluate(() => { window.sameDocument = true; });
  await page.screenshot({ path: `${shots}/light.png`, fullPage: true });

  // By keyboard: open, look, leave.
  await page.locator("#switchover").focus();
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  await page.keyboard.press("Escape");
  await page.waitForSelector("dialog[open]", { state: "detached" });

  await page.click("#pause");
  assert.match(await page.locator("#ask-consequence").textContent(), /no failover until you resume/);
  await page.click("#ask-yes");
  await page.waitForFunction(() => document.getElementById("verdict").textContent.includes("Paused"));
  await page.click("#ask-no");
  await page.click("#pause");
  await page.click("#ask-yes");
  await page.waitForFunction(() => document.getElementById("pause").textContent === "Pause");
  await page.click("#ask-no");

  await page.click("#switchover");
  await page.selectOption("#candidate", candidate);
  const consequence = await page.locator("#ask-consequence").textContent();
  assert.match(consequence, /\d+(\.\d)? (bytes|KiB|MiB) behind/);
  assert.match(consequence, /no acknowledged commit is lost.*tenths of a second, and at most \d+(\.\d+)? s/);
  await page.screenshot({ path: `${shots}/switchover.png` });
  await page.click("#ask-yes");
  await page.waitForSelector(leads(candidate), { timeout: 60000 });
  await page.waitForFunction(() => document.getElementById("ask-no").textContent === "Close", null, { timeout: 60000 });
  await page.click("#ask-no");
  await page.waitForFunction((name) => document.getElementById("verdict").textContent.startsWith(`Healthy. Writes go to ${name}.`),
    candidate, { timeout: 60000 });
  // What happened stands there with its parts and its reason.
  await page.waitForFunction((name) => {
    const first = document.querySelector("#timeline li");
    return first && first.textContent.includes(`switchover ${name}`) && /promote \d+ ms/.test(first.textContent) && first.textContent.includes("Lost: nothing.");
  }, candidate, { timeout: 60000 });

  // This node is a replica: it is restarted, and a new copy is thought better of.
  await page.click("#restart");
  assert.match(await page.locator("#ask-consequence").textContent(), /Sessions on it end.*0 bytes are lost/);
  await page.click("#ask-yes");
  await page.waitForFunction(() => document.getElementById("ask-outcome").textContent === "restarted successfully", null, { timeout: 60000 });
  await page.click("#ask-no");
  await page.waitForFunction((name) => document.getElementById("verdict").textContent.startsWith(`Healthy. Writes go to ${name}.`),
    candidate, { timeout: 60000 });
  await page.click("#reinit");
  assert.match(await page.locator("#ask-consequence").textContent(), /behind now.*moved aside; 0 bytes are deleted/);
  await page.click("#ask-no");
  await page.waitForSelector("dialog[open]", { state: "detached" });
  assert.ok(await page.evaluate(() => window.sameDocument), "the page was loaded again");

  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: `${shots}/dark.png`, fullPage: true });
  await page.setViewportSize({ width: 390, height: 844 });
  await page.screenshot({ path: `${shots}/phone.png`, fullPage: true });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 390, `the page is ${width} wide on a phone`);
  assert.deepStrictEqual(complaints, []);
}

(async () => {
  const browser = await chromium.launch({ executablePath: browserPath, args: quiet });
  try {
    await run(browser);
    console.log("the dashboard works");
  } finally {
    await browser.close();
  }
})().catch((error) => { console.error(error); process.exit(1); });
