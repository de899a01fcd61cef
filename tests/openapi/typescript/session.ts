// A session through the client that openapi-typescript makes of the server's document. What it may not say does not compile; what the server
// answers is compared here. Takes the server's URL, the admin token in NIMBUS_TEST_TOKEN.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { argv: string[]; env: Record<string, string | undefined> };

type Mutation = components["schemas"]["Mutation"];
type BatchMutation = components["schemas"]["BatchMutation"];
type Schedule = components["schemas"]["Schedule"];
type Filter = components["schemas"]["Filter"];
type ErrorCode = components["schemas"]["ErrorCode"];

function assert(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(what);
}

function same(found: unknown, expected: unknown): void {
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  assert(left === right, `${left}, not ${right}`);
}

type Answer<T> = { data?: T; error?: unknown; response: Response };

function ok<T>({ data, error, response }: Answer<T>, status: number): T {
  assert(response.status === status, `${response.url}: ${response.status} ${JSON.stringify(error)}`);
  return data as T;
}

function refused(answer: Answer<unknown>, status: number, code: ErrorCode): void {
  const envelope = answer.error as components["schemas"]["ErrorEnvelope"];
  same([answer.response.status, envelope.error.code], [status, code]);
  same(answer.response.headers.get("X-Request-Id"), envelope.error.requestId);
}

const baseUrl = process.argv[2] ?? "";
const client = (token: string) =>
  createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
const admin = client(process.env["NIMBUS_TEST_TOKEN"] ?? "");
const path = { t: "typed" };

async function tenants(): Promise<void> {
  for (const id of ["typed", "typed-2"]) {
    same(ok(await admin.POST("/api/tenants", { body: { id } }), 201), { id });
  }
  refused(await admin.POST("/api/tenants", { body: { id: "typed" } }), 409, "op.already_exists");
  const seen: string[] = [];
  let query: { limit: number; after?: string } = { limit: 1 };
  for (;;) {
    const part = ok(await admin.GET("/api/tenants", { params: { query } }), 200);
    seen.push(...part.tenants);
    if (part.next_cursor === null) break;
    query = { limit: 1, after: part.next_cursor };
  }
  same(seen, ["typed", "typed-2"]);
  refused(await client("nonsense").GET("/api/tenants", {}), 401, "auth.unauthorized");
  ok(await admin.DELETE("/api/tenants/{t}", { params: { path: { t: "typed-2" } } }), 204);
}

async function documents(): Promise<void> {
  const fields = { name: "Wengen", height: 1274, tags: ["alps"] };
  const written = ok(
    await admin.POST("/api/tenants/{t}/documents", { params: { path }, body: { table: "places", fields } }),
    201,
  );
  const at = { params: { path: { ...path, table: "places", id: written.id } } };
  ok(await admin.PATCH("/api/tenants/{t}/documents/{table}/{id}", { ...at, body: { patch: { height: 1275 } } }), 200);
  const { document } = ok(await admin.GET("/api/tenants/{t}/documents/{table}/{id}", at), 200);
  const created: number = document._creationTime;
  assert(document._updateTime >= created, "times");
  same([document._id, document["height"], document["tags"]], [written.id, 1275, ["alps"]]);

  const mutations: Mutation[] = [
    { type: "insert", table: "places", fields: { name: "Mürren", height: 1638 } },
    { type: "insert", table: "places", fields: { name: "Gimmelwald" }, id: "017f22e2-79b0-7cc3-98c4-dc0c0c07398f" },
    { type: "update", table: "places", id: "017f22e2-79b0-7cc3-98c4-dc0c0c07398f", patch: { height: 1363 } },
    { type: "delete", table: "places", id: written.id },
  ];
  const { results } = ok(await admin.POST("/api/tenants/{t}/batch", { params: { path }, body: { mutations } }), 200);
  same(results.length, 4);
  refused(
    await admin.POST("/api/tenants/{t}/batch", { params: { path }, body: { mutations: mutations.slice(2) } }),
    404,
    "op.document_not_found",
  );
  // @ts-expect-error: an update has a patch, and no fields.
  const wrong: Mutation = { type: "update", table: "places", id: written.id, fields: {} };
  assert(wrong.type === "update", "it is only for the compiler");

  const names: unknown[] = [];
  let query: { limit: number; after?: string } = { limit: 1 };
  for (;;) {
    const params = { path: { ...path, table: "places" }, query };
    const part = ok(await admin.GET("/api/tenants/{t}/documents/{table}", { params }), 200);
    names.push(...part.data.map((found) => found["name"]));
    if (part.next_cursor === null) break;
    query = { limit: 1, after: part.next_cursor };
  }
  same(names, ["Mürren", "Gimmelwald"]);
}

// Versions as `ETag`: what was read is changed only while it is what is there.
async function conditions(): Promise<void> {
  const [table, id] = ["conditions", "017f22e2-79b0-7cc3-98c4-dc0c0c073990"];
  const insert = () =>
    admin.POST("/api/tenants/{t}/documents", {
      params: { path, header: { "If-None-Match": "*" } },
      body: { table, id, fields: { n: 1 } },
    });
  const made = await insert();
  const first: number = ok(made, 201).version;
  same(made.response.headers.get("ETag"), `"${first}"`);
  const failed = (answer: Answer<unknown>, version: number) => {
    refused(answer, 412, "op.precondition_failed");
    same((answer.error as components["schemas"]["ErrorEnvelope"]).error.detail, String(version));
  };
  failed(await insert(), first);

  const at = { ...path, table, id };
  const get = (header: { "If-None-Match"?: string }) =>
    admin.GET("/api/tenants/{t}/documents/{table}/{id}", { params: { path: at, header } });
  const patch = (n: number, etag: string) =>
    admin.PATCH("/api/tenants/{t}/documents/{table}/{id}", {
      params: { path: at, header: { "If-Match": etag } },
      body: { patch: { n } },
    });
  const remove = (etag: string) =>
    admin.DELETE("/api/tenants/{t}/documents/{table}/{id}", { params: { path: at, header: { "If-Match": etag } } });

  const read = await get({});
  same(ok(read, 200).document._version, first);
  const etag = read.response.headers.get("ETag") ?? "";
  const known = await get({ "If-None-Match": etag });
  ok(known, 304);
  same(known.response.headers.get("ETag"), etag);

  const changed = await patch(2, etag);
  const second = ok(changed, 200).version;
  assert(second > first, "versions grow");
  same(changed.response.headers.get("ETag"), `"${second}"`);
  failed(await patch(3, etag), second);
  failed(await remove(etag), second);
  same(ok(await get({ "If-None-Match": etag }), 200).document["n"], 2);

  const check: BatchMutation = { type: "check", table, id, version: first };
  const update: Mutation = { type: "update", table, id, patch: { n: 4 }, if_version: second };
  const batch = (mutations: BatchMutation[]) => admin.POST("/api/tenants/{t}/batch", { params: { path }, body: { mutations } });
  failed(await batch([check, update]), second);
  const [result] = ok(await batch([update]), 200).results;
  assert(result !== undefined && result.version !== null, "an update has a version");
  ok(await remove(`"${result.version}"`), 204);
}

// A request that is sent again under its key is answered as the first time, and done once.
async function sentAgain(): Promise<void> {
  const under = (key: string) => ({ path, header: { "Idempotency-Key": key } });
  const insert = (n: number) =>
    admin.POST("/api/tenants/{t}/documents", { params: under("typed-1"), body: { table: "once", fields: { n } } });
  const [first, again] = [await insert(1), await insert(1)];
  same(ok(again, 201), ok(first, 201));
  same(first.response.headers.get("Idempotency-Replayed"), null);
  same(again.response.headers.get("Idempotency-Replayed"), "true");
  same(again.response.headers.get("ETag"), first.response.headers.get("ETag"));
  refused(await insert(2), 409, "op.conflict");
  const once = await admin.GET("/api/tenants/{t}/documents/{table}", { params: { path: { ...path, table: "once" } } });
  same(ok(once, 200).data.length, 1);

  const mutation: Mutation = { type: "insert", table: "once", fields: { n: 3 } };
  const batch = () => admin.POST("/api/tenants/{t}/batch", { params: under("typed-2"), body: { mutations: [mutation] } });
  const [applied, replayed] = [await batch(), await batch()];
  same(ok(replayed, 200).results, ok(applied, 200).results);
  same(replayed.response.headers.get("Idempotency-Replayed"), "true");

  const body = { run_after_ms: 3_600_000, mutation };
  const job = () => admin.POST("/api/tenants/{t}/schedule", { params: under("typed-3"), body });
  const [scheduled, jobAgain] = [ok(await job(), 201).job_id, ok(await job(), 201).job_id];
  same(jobAgain, scheduled);
  ok(await admin.DELETE("/api/tenants/{t}/schedule/{job}", { params: { path: { ...path, job: scheduled } } }), 204);
}

async function queries(): Promise<void> {
  const filters: Filter[] = [
    { field: "height", op: "gte", value: 1000 },
    { field: "name", op: "in", value: ["Mürren", "Gimmelwald"] },
    { field: "name", op: "exists", value: true },
  ];
  const order = { field: "height", direction: "desc" } as const;
  const body = { table: "places", filters, order, limit: 1 };
  const found = ok(await admin.POST("/api/tenants/{t}/query", { params: { path }, body }), 200);
  same([found.data.map((one) => one["name"]), found.has_more], [["Mürren"], true]);
  const after = found.next_cursor;
  const rest = { query: { table: "places", filters, order }, page_size: 10, after };
  const page = ok(await admin.POST("/api/tenants/{t}/query/paginated", { params: { path }, body: rest }), 200);
  same([page.data.map((one) => one["name"]), page.has_more, page.next_cursor], [["Gimmelwald"], false, null]);

  const params = { path, query: { after: 0, limit: 2 } };
  const journal = ok(await admin.GET("/api/tenants/{t}/journal", { params }), 200);
  same([journal.records.map((record) => record.type), journal.has_more], [["insert", "update"], true]);
}

async function schemas(): Promise<void> {
  const at = { params: { path: { ...path, table: "visits" } } };
  const schema: components["schemas"]["TableSchema"] = {
    table: "visits",
    fields: [{ name: "n", field_type: "number", required: true }],
    indexes: [{ name: "by-n", fields: ["n"] }],
  };
  ok(await admin.PUT("/api/tenants/{t}/schema/{table}", { ...at, body: schema }), 204);
  same(ok(await admin.GET("/api/tenants/{t}/schema/{table}", at), 200).indexes?.[0]?.name, "by-n");
  same(Object.keys(ok(await admin.GET("/api/tenants/{t}/schema", { params: { path } }), 200).tables), ["visits"]);
  const body = { table: "visits", fields: { n: "one" } };
  refused(await admin.POST("/api/tenants/{t}/documents", { params: { path }, body }), 400, "op.schema_validation");
  ok(await admin.DELETE("/api/tenants/{t}/schema/{table}", at), 204);
}

async function schedules(): Promise<void> {
  const mutation: Mutation = { type: "insert", table: "ran", fields: { n: 1 } };
  const later = { run_after_ms: 3_600_000, mutation };
  const waiting = ok(await admin.POST("/api/tenants/{t}/schedule", { params: { path }, body: later }), 201).job_id;
  const { jobs } = ok(await admin.GET("/api/tenants/{t}/schedule", { params: { path } }), 200);
  const [job] = jobs;
  assert(job !== undefined && job.mutation.type === "insert", "the job waits");
  same([job.id, job.mutation.fields], [waiting, { n: 1 }]);
  ok(await admin.DELETE("/api/tenants/{t}/schedule/{job}", { params: { path: { ...path, job: waiting } } }), 204);

  const now = { run_after_ms: 0, mutation };
  const ran = ok(await admin.POST("/api/tenants/{t}/schedule", { params: { path }, body: now }), 201).job_id;
  const at = { params: { path: { ...path, job: ran } } };
  for (;;) {
    const history = await admin.GET("/api/tenants/{t}/schedule/history/{job}", at);
    if (history.data) {
      same([history.data.result.outcome, history.data.result.error], ["succeeded", null]);
      break;
    }
    refused(history, 404, "op.scheduled_job_not_found");
    await new Promise((again) => setTimeout(again, 20));
  }

  const every: Schedule = { type: "interval", seconds: 3600 };
  const nightly: Schedule = { type: "cron", expression: "30 3 * * *", timezone: "Europe/Berlin" };
  for (const [name, schedule] of [["hourly", every], ["nightly", nightly]] as const) {
    const made = ok(await admin.POST("/api/tenants/{t}/crons", { params: { path }, body: { name, schedule, mutation } }), 201);
    assert(made.next_run_at > Date.now(), "it lies ahead");
  }
  // @ts-expect-error: the server refuses a cron without a zone.
  const zoneless: Schedule = { type: "cron", expression: "30 3 * * *" };
  assert(zoneless.type === "cron", "it is only for the compiler");
  const { crons } = ok(await admin.GET("/api/tenants/{t}/crons", { params: { path } }), 200);
  const zones = crons.map(({ schedule }) => (schedule.type === "cron" ? schedule.timezone : schedule.seconds));
  same(zones, [3600, "Europe/Berlin"]);
  for (const name of ["hourly", "nightly"]) {
    ok(await admin.DELETE("/api/tenants/{t}/crons/{name}", { params: { path: { ...path, name } } }), 204);
  }
}

async function deploys(): Promise<void> {
  const bytes = new Uint8Array([0, 159, 146, 150, 255, 10]);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const sha256 = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const content_base64 = btoa(String.fromCharCode(...bytes));
  const files = [{ path: "img/dot.png", sha256, content_base64 }];
  const app = { name: "first", schemas: [], crons: [], files };
  const plan = ok(await admin.POST("/api/tenants/{t}/deploy", { params: { path }, body: { ...app, dry_run: true } }), 200);
  same([plan.activated, plan.diff.files.added.names], [false, ["img/dot.png"]]);
  const deployed = ok(await admin.POST("/api/tenants/{t}/deploy", { params: { path }, body: app }), 201);
  const listed = ok(await admin.GET("/api/tenants/{t}/deploy", { params: { path } }), 200);
  same([listed.active, listed.generations.length], [deployed.generation, 1]);
  assert(deployed.generation !== null, "it is stored");
  const generation = { ...path, generation: deployed.generation };
  ok(await admin.POST("/api/tenants/{t}/deploy/{generation}/activate", { params: { path: generation } }), 200);

  const at = { ...path, path: "img/dot.png" };
  const whole = await admin.GET("/apps/{t}/{path}", { params: { path: at }, parseAs: "arrayBuffer" });
  same([...new Uint8Array(ok(whole, 200))], [...bytes]);
  same(whole.response.headers.get("Content-Type"), "image/png");
  const etag = whole.response.headers.get("ETag") ?? "";
  const header = { Range: "bytes=1-2", "If-Range": etag };
  const part = await admin.GET("/apps/{t}/{path}", { params: { path: at, header }, parseAs: "arrayBuffer" });
  same([...new Uint8Array(ok(part, 206))], [159, 146]);
  same(part.response.headers.get("Content-Range"), "bytes 1-2/6");
  const known = { "If-None-Match": etag };
  ok(await admin.GET("/apps/{t}/{path}", { params: { path: at, header: known } }), 304);
}

async function keys(): Promise<void> {
  const body = { name: "reader", scope: "read" } as const;
  const made = ok(await admin.POST("/api/tenants/{t}/keys", { params: { path }, body }), 201);
  const reader = client(made.key);
  const header = { "X-Nimbus-Identity": "ann", "X-Request-Id": "typed-1" };
  const read = await reader.GET("/api/tenants/{t}/documents/{table}", {
    params: { path: { ...path, table: "places" }, header },
  });
  same(ok(read, 200).data.length, 2);
  same(read.response.headers.get("X-Request-Id"), "typed-1");
  const insert = { table: "places", fields: {} };
  refused(await reader.POST("/api/tenants/{t}/documents", { params: { path }, body: insert }), 403, "auth.forbidden");
  const listed = ok(await admin.GET("/api/tenants/{t}/keys", { params: { path } }), 200).keys;
  same(listed.map(({ id, scope }) => [id, scope]), [[made.id, "read"]]);
  ok(await admin.DELETE("/api/tenants/{t}/keys/{id}", { params: { path: { ...path, id: made.id } } }), 204);
  refused(await reader.GET("/api/tenants/{t}/schema", { params: { path } }), 401, "auth.token_revoked");
}

async function operator(): Promise<void> {
  same(ok(await admin.GET("/health"), 200), { ok: true });
  const ready = ok(await admin.GET("/ready"), 200);
  same([ready.ready, ready.checks.storage.ok], [true, true]);
  const metrics = await admin.GET("/metrics", { parseAs: "text" });
  assert(ok(metrics, 200).includes("nimbus_"), "metrics");
  const status = ok(await admin.GET("/debug/encryption/status", { params: { query: { verify: "unwrap" } } }), 200);
  same([status.summary.problems, status.provider?.kind], [0, "master-key-file"]);
  const token = createClient<paths>({
    baseUrl,
    headers: { "X-Nimbus-Admin-Token": process.env["NIMBUS_TEST_TOKEN"] ?? "" },
  });
  same(ok(await token.GET("/api/tenants"), 200).tenants, ["typed"]);
}

await tenants();
await documents();
await queries();
await conditions();
await sentAgain();
await schemas();
await schedules();
await deploys();
await keys();
await operator();
console.log("the session went through");
