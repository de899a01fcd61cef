"""A session through the client that openapi-python-client makes of the server's document.

Takes the server's URL, the admin token in NIMBUS_TEST_TOKEN, and the generated package `nimbus_client` on its path.
"""

import base64
import hashlib
import importlib
import os
import pkgutil
import sys
import time

import nimbus_client
from nimbus_client import AuthenticatedClient, models as m
from nimbus_client.api.access import create_key, list_keys, revoke_key
from nimbus_client.api.apps import app_file
from nimbus_client.api.deploys import activate_generation, deploy, list_generations
from nimbus_client.api.documents import (
    apply_batch,
    delete_document,
    get_document,
    insert_document,
    list_documents,
    patch_document,
    query,
    query_page,
    read_journal,
)
from nimbus_client.api.encryption import encryption_status
from nimbus_client.api.operation import health, metrics, ready
from nimbus_client.api.schedule import (
    cancel_job,
    delete_cron,
    job_history,
    list_crons,
    list_jobs,
    put_cron,
    schedule_job,
)
from nimbus_client.api.schemas import delete_schema, get_schema, list_schemas, put_schema
from nimbus_client.api.tenants import create_tenant, delete_tenant, list_tenants
from nimbus_client.types import File

URL = sys.argv[1]
TOKEN = os.environ["NIMBUS_TEST_TOKEN"]
T = "python"


def client(token):
    return AuthenticatedClient(base_url=URL, token=token, raise_on_unexpected_status=True)


ADMIN = client(TOKEN)


def ok(response, status, shape):
    """What was answered, which is a success of the document's shape."""
    assert response.status_code == status, (response.status_code, response.content)
    assert isinstance(response.parsed, shape), (type(response.parsed), shape)
    return response.parsed


def done(response):
    assert response.status_code == 204, (response.status_code, response.content)


def refused(response, status, code):
    assert response.status_code == status, (response.status_code, response.content)
    assert isinstance(response.parsed, m.ErrorEnvelope), response.parsed
    assert response.parsed.error.code == code, response.parsed
    assert response.headers["X-Request-Id"] == response.parsed.error.request_id


def fields(**members):
    return m.Fields.from_dict(members)


def every_module_is_there():
    """Each operation has a module that imports, and each kind of a thing has a class."""
    names = [module.name for module in pkgutil.walk_packages(nimbus_client.__path__, "nimbus_client.")]
    for name in names:
        importlib.import_module(name)
    assert sum(name.count(".") == 3 and ".api." in name for name in names) > 40, names
    for kind in ("InsertMutation", "UpdateMutation", "DeleteMutation", "IntervalSchedule", "CronSchedule"):
        assert hasattr(m, kind), kind


def tenants():
    for name in (T, "python-2"):
        made = ok(create_tenant.sync_detailed(client=ADMIN, body=m.NewTenant(id=name)), 201, m.NewTenant)
        assert made.id == name
    refused(create_tenant.sync_detailed(client=ADMIN, body=m.NewTenant(id=T)), 409, "op.already_exists")
    refused(list_tenants.sync_detailed(client=client("nonsense")), 401, "auth.unauthorized")
    first = ok(list_tenants.sync_detailed(client=ADMIN, limit=1, after="pyth"), 200, m.Tenants)
    assert (first.tenants, first.has_more, first.next_cursor) == ([T], True, T)
    second = ok(list_tenants.sync_detailed(client=ADMIN, limit=1, after=first.next_cursor), 200, m.Tenants)
    assert second.tenants == ["python-2"], second
    done(delete_tenant.sync_detailed("python-2", client=ADMIN))


def documents():
    body = m.NewDocument(table="places", fields=fields(name="Wengen", height=1274, tags=["alps"]))
    written = ok(insert_document.sync_detailed(T, client=ADMIN, body=body), 201, m.Written)
    at = (T, "places", written.id)
    patch = m.Patch(patch=fields(height=1275))
    ok(patch_document.sync_detailed(*at, client=ADMIN, body=patch), 200, m.Written)
    document = ok(get_document.sync_detailed(*at, client=ADMIN), 200, m.OneDocument).document
    assert document.field_id == written.id and document.field_update_time >= document.field_creation_time
    assert (document["height"], document["tags"]) == (1275, ["alps"])

    other = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    mutations = [
        m.InsertMutation(type_="insert", table="places", fields=fields(name="Mürren", height=1638)),
        m.InsertMutation(type_="insert", table="places", fields=fields(name="Gimmelwald"), id=other),
        m.UpdateMutation(type_="update", table="places", id=other, patch=fields(height=1363)),
        m.DeleteMutation(type_="delete", table="places", id=written.id),
    ]
    applied = apply_batch.sync_detailed(T, client=ADMIN, body=m.Batch(mutations=mutations))
    assert ok(applied, 200, m.BatchResults).results[1].id == other
    again = apply_batch.sync_detailed(T, client=ADMIN, body=m.Batch(mutations=mutations[2:]))
    refused(again, 404, "op.document_not_found")

    first = ok(list_documents.sync_detailed(T, "places", client=ADMIN, limit=1), 200, m.Page)
    assert [found["name"] for found in first.data] == ["Mürren"] and first.has_more
    after = first.next_cursor
    second = ok(list_documents.sync_detailed(T, "places", client=ADMIN, after=after), 200, m.Page)
    assert [found["name"] for found in second.data] == ["Gimmelwald"] and second.next_cursor is None
    refused(list_documents.sync_detailed(T, "places", client=ADMIN, limit=0), 400, "op.invalid_input")


def conditions():
    """Versions as `ETag`: what was read is changed only while it is what is there."""
    table, wanted = "conditions", "017f22e2-79b0-7cc3-98c4-dc0c0c073990"
    body = m.NewDocument(table=table, fields=fields(n=1), id=wanted)
    made = insert_document.sync_detailed(T, client=ADMIN, body=body, if_none_match="*")
    first = ok(made, 201, m.Written).version
    assert made.headers["ETag"] == f'"{first}"', made.headers
    again = insert_document.sync_detailed(T, client=ADMIN, body=body, if_none_match="*")
    refused(again, 412, "op.precondition_failed")
    assert again.parsed.error.detail == str(first), again.parsed

    at = (T, table, wanted)
    read = get_document.sync_detailed(*at, client=ADMIN)
    assert ok(read, 200, m.OneDocument).document.field_version == first
    etag = read.headers["ETag"]
    known = get_document.sync_detailed(*at, client=ADMIN, if_none_match=etag)
    assert (known.status_code, known.parsed, known.headers["ETag"]) == (304, None, etag)

    changed = patch_document.sync_detailed(*at, client=ADMIN, body=m.Patch(patch=fields(n=2)), if_match=etag)
    second = ok(changed, 200, m.Written).version
    assert second > first and changed.headers["ETag"] == f'"{second}"'
    stale = patch_document.sync_detailed(*at, client=ADMIN, body=m.Patch(patch=fields(n=3)), if_match=etag)
    refused(stale, 412, "op.precondition_failed")
    assert stale.parsed.error.detail == str(second), stale.parsed
    newer = get_document.sync_detailed(*at, client=ADMIN, if_none_match=etag)
    assert ok(newer, 200, m.OneDocument).document["n"] == 2, newer.parsed
    refused(delete_document.sync_detailed(*at, client=ADMIN, if_match=etag), 412, "op.precondition_failed")

    check = m.CheckMutation(type_="check", table=table, id=wanted, version=first)
    update = m.UpdateMutation(type_="update", table=table, id=wanted, patch=fields(n=4), if_version=second)
    for mutations, status in (([check, update], 412), ([update], 200)):
        batch = apply_batch.sync_detailed(T, client=ADMIN, body=m.Batch(mutations=mutations))
        if status == 412:
            refused(batch, 412, "op.precondition_failed")
        else:
            [result] = ok(batch, 200, m.BatchResults).results
    done(delete_document.sync_detailed(*at, client=ADMIN, if_match=f'"{result.version}"'))


def sent_again():
    """A request that is sent again under its key is answered as the first time, and done once."""
    body = m.NewDocument(table="once", fields=fields(n=1))
    send = lambda key, body: insert_document.sync_detailed(T, client=ADMIN, body=body, idempotency_key=key)
    first, again = send("python-1", body), send("python-1", body)
    assert ok(first, 201, m.Written) == ok(again, 201, m.Written)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true" and again.headers["ETag"] == first.headers["ETag"]
    refused(send("python-1", m.NewDocument(table="once", fields=fields(n=2))), 409, "op.conflict")
    assert len(ok(list_documents.sync_detailed(T, "once", client=ADMIN), 200, m.Page).data) == 1

    insert = m.InsertMutation(type_="insert", table="once", fields=fields(n=3))
    batch = m.Batch(mutations=[insert])
    answers = [apply_batch.sync_detailed(T, client=ADMIN, body=batch, idempotency_key="python-2") for _ in range(2)]
    results = [ok(answer, 200, m.BatchResults).results[0].id for answer in answers]
    assert results[0] == results[1] and answers[1].headers["Idempotency-Replayed"] == "true"

    job = m.NewJob(run_after_ms=3_600_000, mutation=insert)
    jobs = [schedule_job.sync_detailed(T, client=ADMIN, body=job, idempotency_key="python-3") for _ in range(2)]
    ids = [ok(answer, 201, m.Scheduled).job_id for answer in jobs]
    assert ids[0] == ids[1], ids
    done(cancel_job.sync_detailed(T, ids[0], client=ADMIN))


def queries():
    filters = [
        m.ComparisonFilter(field="height", op="gte", value=1000),
        m.InFilter(field="name", op="in", value=["Mürren", "Gimmelwald"]),
        m.ExistsFilter(field="name", op="exists", value=True),
    ]
    order = m.Order(field="height", direction="desc")
    body = m.Query(table="places", filters=filters, order=order, limit=1)
    found = ok(query.sync_detailed(T, client=ADMIN, body=body), 200, m.Page)
    assert ([one["name"] for one in found.data], found.has_more) == (["Mürren"], True)
    rest = m.PaginatedQuery(
        query=m.QueryInPages(table="places", filters=filters, order=order), page_size=10, after=found.next_cursor
    )
    page = ok(query_page.sync_detailed(T, client=ADMIN, body=rest), 200, m.Page)
    assert ([one["name"] for one in page.data], page.has_more) == (["Gimmelwald"], False)
    journal = ok(read_journal.sync_detailed(T, client=ADMIN, after=0, limit=2), 200, m.JournalPage)
    assert [record.type_ for record in journal.records] == ["insert", "update"] and journal.has_more


def schemas():
    schema = m.TableSchema(
        table="visits",
        fields=[m.FieldRule(name="n", field_type="number", required=True)],
        indexes=[m.IndexRule(name="by-n", fields=["n"])],
    )
    done(put_schema.sync_detailed(T, "visits", client=ADMIN, body=schema))
    assert ok(get_schema.sync_detailed(T, "visits", client=ADMIN), 200, m.TableSchema).indexes[0].name == "by-n"
    tables = ok(list_schemas.sync_detailed(T, client=ADMIN), 200, m.Schemas).tables
    assert tables.additional_keys == ["visits"]
    body = m.NewDocument(table="visits", fields=fields(n="one"))
    refused(insert_document.sync_detailed(T, client=ADMIN, body=body), 400, "op.schema_validation")
    done(delete_schema.sync_detailed(T, "visits", client=ADMIN))


def schedules():
    mutation = m.InsertMutation(type_="insert", table="ran", fields=fields(n=1))
    later = m.NewJob(run_after_ms=3_600_000, mutation=mutation)
    waiting = ok(schedule_job.sync_detailed(T, client=ADMIN, body=later), 201, m.Scheduled).job_id
    [job] = ok(list_jobs.sync_detailed(T, client=ADMIN), 200, m.Jobs).jobs
    assert job.id == waiting and isinstance(job.mutation, m.InsertMutation) and job.mutation.fields["n"] == 1
    done(cancel_job.sync_detailed(T, waiting, client=ADMIN))

    now = m.NewJob(run_after_ms=0, mutation=mutation)
    ran = ok(schedule_job.sync_detailed(T, client=ADMIN, body=now), 201, m.Scheduled).job_id
    while (history := job_history.sync_detailed(T, ran, client=ADMIN)).status_code == 404:
        time.sleep(0.02)
    result = ok(history, 200, m.JobResult).result
    assert (result.outcome, result.error) == ("succeeded", None)

    nightly = m.CronSchedule(type_="cron", expression="30 3 * * *", timezone="Europe/Berlin")
    hourly = m.IntervalSchedule(type_="interval", seconds=3600)
    for name, schedule in (("hourly", hourly), ("nightly", nightly)):
        cron = m.NewCron(name=name, schedule=schedule, mutation=mutation)
        ok(put_cron.sync_detailed(T, client=ADMIN, body=cron), 201, m.CronMade)
    crons = ok(list_crons.sync_detailed(T, client=ADMIN), 200, m.Crons).crons
    assert [cron.schedule for cron in crons] == [hourly, nightly], crons
    for name in ("hourly", "nightly"):
        done(delete_cron.sync_detailed(T, name, client=ADMIN))


def deploys():
    content = bytes([0, 159, 146, 150, 255, 10])
    file = m.DeployFile(
        path="img/dot.png",
        sha256=hashlib.sha256(content).hexdigest(),
        content_base64=base64.b64encode(content).decode(),
    )
    app = m.Deploy(name="first", schemas=[], crons=[], files=[file], dry_run=True)
    plan = ok(deploy.sync_detailed(T, client=ADMIN, body=app), 200, m.Deployed)
    assert (plan.activated, plan.diff.files.added.names) == (False, ["img/dot.png"])
    app.dry_run = False
    made = ok(deploy.sync_detailed(T, client=ADMIN, body=app), 201, m.Deployed)
    listed = ok(list_generations.sync_detailed(T, client=ADMIN), 200, m.Generations)
    assert (listed.active, len(listed.generations)) == (made.generation, 1)
    ok(activate_generation.sync_detailed(T, made.generation, client=ADMIN), 200, m.Deployed)

    whole = app_file.sync_detailed(T, "img/dot.png", client=ADMIN)
    assert ok(whole, 200, File).payload.read() == content
    assert whole.headers["Content-Type"] == "image/png"
    etag = whole.headers["ETag"]
    part = app_file.sync_detailed(T, "img/dot.png", client=ADMIN, range_="bytes=1-2", if_range=etag)
    assert ok(part, 206, File).payload.read() == content[1:3]
    known = app_file.sync_detailed(T, "img/dot.png", client=ADMIN, if_none_match=etag)
    assert (known.status_code, known.parsed) == (304, None)


def keys():
    made = ok(create_key.sync_detailed(T, client=ADMIN, body=m.NewKey(name="reader", scope="read")), 201, m.ShownKey)
    reader = client(made.key)
    read = list_documents.sync_detailed(
        T, "places", client=reader, x_nimbus_identity="ann", x_request_id="python-1"
    )
    assert len(ok(read, 200, m.Page).data) == 2 and read.headers["X-Request-Id"] == "python-1"
    body = m.NewDocument(table="places", fields=fields())
    refused(insert_document.sync_detailed(T, client=reader, body=body), 403, "auth.forbidden")
    [listed] = ok(list_keys.sync_detailed(T, client=ADMIN), 200, m.Keys).keys
    assert (listed.id, listed.scope) == (made.id, "read")
    done(revoke_key.sync_detailed(T, made.id, client=ADMIN))
    refused(list_documents.sync_detailed(T, "places", client=reader), 401, "auth.token_revoked")


def operator():
    assert ok(health.sync_detailed(client=ADMIN), 200, m.Healthy).ok
    assert ok(ready.sync_detailed(client=ADMIN), 200, m.Readiness).checks.storage.ok
    assert "nimbus_" in ok(metrics.sync_detailed(client=ADMIN), 200, str)
    status = ok(encryption_status.sync_detailed(client=ADMIN, verify="unwrap"), 200, m.EncryptionStatus)
    assert status.summary.problems == 0 and status.provider.kind == "master-key-file"


every_module_is_there()
tenants()
documents()
queries()
conditions()
sent_again()
schemas()
schedules()
deploys()
keys()
operator()
print("the session went through")
