"""gcs_check.py ADDRESS: whether a stand-in for Google Cloud Storage keeps generation preconditions, asked by Google's own client.

Ends with 0 and `kept`, or with 1 and everything that is not kept.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from google.api_core.exceptions import NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

wrong = []


def want(holds, sentence):
    if not holds:
        wrong.append(sentence)


def refused(call, sentence, by=PreconditionFailed):
    try:
        call()
    except by:
        return
    wrong.append(sentence)


def client():
    return storage.Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": sys.argv[1]})


def write(blob, text, **condition):
    # Without repeats, so that one call is one request.
    blob.upload_from_string(text, retry=None, **condition)


bucket = client().create_bucket("checked")

one = bucket.blob("a folder/one")
write(one, "first", if_generation_match=0)
first = one.generation
want(first and first > 0, "an object that was written has a generation")
refused(lambda: write(one, "again", if_generation_match=0), "what is there is not created again")
refused(lambda: write(one, "wrong", if_generation_match=first + 1), "a write over another generation is refused")
want(one.download_as_bytes() == b"first", "a refused write changes nothing")
write(one, "second", if_generation_match=first)
want(one.generation > first, "each write has a higher generation")
refused(lambda: write(one, "late", if_generation_match=first), "a write over a generation that is gone is refused")
want(bucket.get_blob("a folder/one").generation == one.generation, "the object tells the generation that its writer was told")
want(one.download_as_bytes(if_generation_match=one.generation) == b"second", "the right generation is read")
refused(lambda: one.download_as_bytes(if_generation_match=first), "a read of another generation is refused")
refused(lambda: one.delete(if_generation_match=first, retry=None), "a removal of another generation is refused")
two = bucket.blob("two")
refused(lambda: write(two, "x", if_generation_match=first), "a write over what is not there is refused")

# What was written is listed at once, in order, over several pages, and what was removed is not.
names = [f"many/{i:03}" for i in range(25)]
for name in names:
    write(bucket.blob(name), name, if_generation_match=0)
    want(name in [blob.name for blob in bucket.list_blobs(prefix="many/")], f"{name} is listed when it was written")
pages = list(bucket.list_blobs(prefix="many/", page_size=10).pages)
want([blob.name for page in pages for blob in page] == names, "pages together are the whole in order")
want([blob.name for blob in bucket.list_blobs(prefix="many/", start_offset="many/020")] == names[20:], "a list begins where asked")
folders = bucket.list_blobs(delimiter="/", page_size=1)
list(folders)
want(set(folders.prefixes) == {"a folder/", "many/"}, f"folders are told apart: {folders.prefixes}")
if not wrong:
    one.delete(if_generation_match=one.generation)
    refused(lambda: one.download_as_bytes(), "what was removed is gone", NotFound)
    write(one, "anew", if_generation_match=0)

# Writers at once: for each name and each generation exactly one wins, and what is there is the winner's.
WRITERS = 8
buckets = [client().bucket("checked") for _ in range(WRITERS)]


def race(writer, name, match):
    try:
        write(buckets[writer].blob(name), f"by {writer}", if_generation_match=match)
        return writer
    except PreconditionFailed:
        return None


with ThreadPoolExecutor(WRITERS) as pool:
    for i in range(20):
        match = 0
        for _ in range(2):
            tried = pool.map(race, range(WRITERS), [f"race/{i}"] * WRITERS, [match] * WRITERS)
            won = [writer for writer in tried if writer is not None]
            there = bucket.get_blob(f"race/{i}")
            want(len(won) == 1, f"one of {WRITERS} writers wins, not {len(won)}")
            want(there.download_as_bytes() == f"by {won[-1]}".encode(), "what is there is the winner's")
            match = there.generation

print("\n".join(wrong) if wrong else "kept")
sys.exit(1 if wrong else 0)
