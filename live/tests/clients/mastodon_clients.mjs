// The npm packages masto and megalodon, as they are, stream from the server: `ok NAME` or `FAIL NAME: why` for each.
//
//     BASE_URL=http://... REDIS_URL=redis://... TOKEN=... ACCOUNT_ID=... [LIST_ID=...] [NODE_MODULES=folder]
//     node mastodon_clients.mjs
//
// The token has the scope `read`; the list belongs to the account. NODE_MODULES is a folder with node_modules in it.
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";

const WAIT = 10_000;
const setting = (name) => process.env[name] || (console.error(`${name} is not set`), process.exit(2));
const [BASE, TOKEN, ID, REDIS] = ["BASE_URL", "TOKEN", "ACCOUNT_ID", "REDIS_URL"].map(setting);
const LIST = process.env.LIST_ID;
const PREFIX = process.env.REDIS_NAMESPACE ? `${process.env.REDIS_NAMESPACE}:` : "";
const WS = BASE.replace(/^http/, "ws").replace(/\/$/, "");
const require = createRequire(`${process.env.NODE_MODULES || import.meta.dirname}/`);
const { createStreamingAPIClient } = require("masto");
const { default: megalodon } = require("megalodon");
const redis = require("redis").createClient({ url: REDIS });

const number = () => String(randomBytes(7).readUIntBE(0, 6) + 2 ** 50);
const word = () => `x${randomBytes(7).toString("hex")}`;
const publish = (channel, event, payload) =>
  redis.publish(PREFIX + channel, JSON.stringify(payload === undefined ? { event } : { event, payload }));

function equal(what, came, expected) {
  if (!isDeepStrictEqual(came, expected)) {
    throw new Error(`${what}: expected ${JSON.stringify(expected)}, came ${JSON.stringify(came)}`);
  }
}

async function until(condition, what) {
  for (const end = Date.now() + WAIT; Date.now() < end; await sleep(10)) {
    const result = await condition();
    if (result) return result;
  }
  throw new Error(`expected ${what} within ${WAIT / 1000} s, came nothing such`);
}

const person = (domain) => {
  const username = word();
  return { id: number(), username, acct: domain ? `${username}@${domain}` : username, display_name: "Zoë 🦊" };
};
const status = () => ({
  id: number(), created_at: "2026-08-01T02:03:04.567Z", content: "<p>é 🦊</p>", spoiler_text: "", language: "en",
  account: person("far.example"), media_attachments: [], mentions: [], tags: [], emojis: [], poll: null,
  in_reply_to_id: "5",
});
const notification = () => ({ id: number(), type: "favourite", account: person(), status: status() });
const conversation = () => ({ id: number(), unread: true, accounts: [person()], last_status: status() });

// Streams under test: what each client calls them, the channel behind, and what arrives there.
const EVERY = [["update", status], ["status.update", status], ["delete", number]];
const TALKS = [["conversation", conversation], ["delete", number]];
const NOTES = [["notification", notification]];

// Publishes deletes on the channel until one was seen.
async function hears(channel, seen) {
  await until(async () => {
    await publish(channel, "delete", number());
    await sleep(20);
    return seen.some(([event]) => event === "delete");
  }, `a delete of ${channel}`);
}

// Publishes one event of each kind; the client gets exactly them, in this order.
async function gets(channel, seen, kinds) {
  for (const [event, make] of kinds) {
    const body = make();
    await publish(channel, event, body);
    const id = body.id ?? body;
    const mine = ([name, it]) => name === event && (it.id ?? it) === id;
    const [, found] = await until(() => seen.find(mine), `${event} ${id} of ${channel}`);
    if (body.account) equal(`${event}: acct`, found.account.acct, body.account.acct);
    if (body.content) equal(`${event}: content`, found.content, body.content);
    const last = found.last_status ?? found.lastStatus;  // masto spells it so
    if (body.accounts) equal(`${event}: last status`, last.id, body.last_status.id);
    if (body.type) equal(`${event}: type, status`, [found.type, found.status.id], [body.type, body.status.id]);
    await sleep(0);
    equal(`${event} ${id} of ${channel}, times`, seen.filter(mine).length, 1);
  }
}

// ---- masto: many streams on one socket, the token in the protocol or in the query

function collect(subscription) {
  const seen = [];
  (async () => {
    for await (const { event, payload } of subscription) seen.push([event, payload]);
  })().catch((error) => seen.push(["error", { id: String(error) }]));
  return seen;
}

function mastoStreams(client, tag, localTag) {
  const home = `timeline:${ID}`;
  return [
    [client.user, undefined, home, EVERY], [client.user.notification, undefined, `${home}:notifications`, NOTES],
    [client.direct, undefined, `timeline:direct:${ID}`, TALKS],
    [client.public, undefined, "timeline:public", EVERY],
    [client.public.local, undefined, "timeline:public:local", EVERY],
    [client.public.remote, undefined, "timeline:public:remote", EVERY],
    [client.public.media, undefined, "timeline:public:media", EVERY],
    [client.hashtag, { tag: tag.toUpperCase() }, `timeline:hashtag:${tag}`, EVERY],
    [client.hashtag.local, { tag: localTag }, `timeline:hashtag:${localTag}:local`, EVERY],
    ...(LIST ? [[client.list, { list: LIST }, `timeline:list:${LIST}`, EVERY]] : []),
  ];
}

async function mastoOn(options) {
  const client = createStreamingAPIClient({ streamingApiUrl: WS, accessToken: TOKEN, retry: false, ...options });
  try {
    await client.prepare();
    const streams = mastoStreams(client, word(), word()).map(([of, params, channel, kinds]) =>
      ({ channel, kinds, seen: collect(of.subscribe(params)) }));
    for (const { channel, seen } of streams) await hears(channel, seen);
    for (const { channel, kinds, seen } of streams) await gets(channel, seen, kinds);
    const [{ channel, seen }] = streams;
    await publish(channel, "filters_changed");
    await gets(channel, seen, EVERY);                    // it did not stumble
    equal("filters_changed", seen.filter(([event]) => event === "filters_changed"), [["filters_changed", undefined]]);
    for (const { seen } of streams) equal("errors", seen.filter(([event]) => event === "error"), []);
  } finally {
    client.close();
  }
}

// ---- megalodon: one socket for each stream, all in the query; it asks an instance for the address first

async function megalodonOn(start, channel, kinds) {
  const pages = http.createServer((request, answer) => answer.setHeader("Content-Type", "application/json")
    .end(JSON.stringify({ uri: "front.example", version: "4.7.0", urls: { streaming_api: WS } })));
  await new Promise((done) => pages.listen(0, "127.0.0.1", done));
  const seen = [];
  let stream;
  try {
    stream = await start(megalodon("mastodon", `http://127.0.0.1:${pages.address().port}`, TOKEN));
    for (const event of ["update", "delete", "notification", "conversation"]) {
      stream.on(event, (it) => seen.push([event, it]));
    }
    stream.on("status_update", (it) => seen.push(["status.update", it]));
    for (const event of ["error", "parser-error"]) {
      stream.on(event, (error) => seen.push([event, { id: String(error) }]));
    }
    await hears(channel, seen);
    await gets(channel, seen, kinds);
    equal("errors", seen.filter(([event]) => event.endsWith("error")), []);
  } finally {
    stream?.stop();
    pages.closeAllConnections();
    pages.close();
  }
}

const tag = word();
const CHECKS = [
  ["masto-token-in-the-protocol", () => mastoOn({})],
  ["masto-token-in-the-query", () => mastoOn({ useInsecureAccessToken: true })],
  ["megalodon-user", () => megalodonOn((c) => c.userStreaming(), `timeline:${ID}`, [...EVERY, ...NOTES])],
  ["megalodon-public", () => megalodonOn((c) => c.publicStreaming(), "timeline:public", EVERY)],
  ["megalodon-local", () => megalodonOn((c) => c.localStreaming(), "timeline:public:local", EVERY)],
  ["megalodon-hashtag", () => megalodonOn((c) => c.tagStreaming(tag.toUpperCase()), `timeline:hashtag:${tag}`, EVERY)],
  ["megalodon-direct", () => megalodonOn((c) => c.directStreaming(), `timeline:direct:${ID}`, TALKS)],
  ["megalodon-list", () => LIST && megalodonOn((c) => c.listStreaming(LIST), `timeline:list:${LIST}`, EVERY)],
];

EventEmitter.defaultMaxListeners = 50;                 // masto listens once for each stream
process.on("unhandledRejection", () => {});             // masto's own loop, when the connection ends
process.on("uncaughtException", (error) => console.log(`# ${error.message}`));  // megalodon, stopped while connecting
console.error = (text, error) => console.log(`# ${text} ${error?.message ?? ""}`);
await redis.connect();
let failed = 0;
for (const [name, check] of CHECKS) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${String(error.message ?? error).slice(0, 700)}`);
  }
}
process.exit(failed ? 1 : 0);
