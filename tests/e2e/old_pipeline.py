"""What the Python and Snowflake pipeline leaves to the one that replaces it: its events, and its settings."""

import uuid
from datetime import UTC, datetime

# What such a file looks like in the wild: comments behind values, quotes, `export`, blanks, names that nobody here knows.
OLD_SETTINGS = """\
# ---------- Kafka ----------
KAFKA_BOOTSTRAP_SERVERS=localhost:{kafka}   # the host's listener
KAFKA_TOPIC={place}
KAFKA_GROUP_ID="{place}-consumer"
BATCH_SIZE=10

# ---------- Simulator ----------
USER_COUNT=20
EVENT_INTERVAL_SECONDS=0.02

# ---------- MinIO ----------
export MINIO_ENDPOINT=http://localhost:{minio}
MINIO_ROOT_USER='{access_key}'
MINIO_ROOT_PASSWORD='{secret_key}'
MINIO_ACCESS_KEY='{access_key}'
MINIO_SECRET_KEY='{secret_key}'
MINIO_BUCKET={place}
MINIO_PREFIX=bronze/

# ---------- Snowflake ----------
SNOWFLAKE_ACCOUNT=xy12345.eu-central-1
SNOWFLAKE_USER=LOADER
SNOWFLAKE_PASSWORD="a # b $c"
SNOWFLAKE_WAREHOUSE=COMPUTE_WH
SNOWFLAKE_DATABASE=SPOTIFY_DB
SNOWFLAKE_SCHEMA=BRONZE
SNOWFLAKE_TABLE=SPOTIFY_EVENTS_BRONZE
SNOWFLAKE_ROLE=

# ---------- Airflow ----------
AIRFLOW__CORE__EXECUTOR=LocalExecutor
AIRFLOW_ADMIN_EMAIL=admin@example.com
AIRFLOW_ADMIN_LASTNAME="Two Words"
POSTGRES_PASSWORD=
LOCAL_TEMP_PATH=/tmp/spotify_raw.json
"""


def event(**other):
    """An event as its producer made them."""
    fields = {
        "event_id": str(uuid.uuid4()),
        "user_id": str(uuid.uuid4()),
        "song_id": "b04ddbae-c1a3-5d48-8d4a-0b5fe5ef1e0a",
        "artist_name": "The Weeknd",
        "song_name": "Blinding Lights",
        "event_type": "play",
        "device_type": "mobile",
        "country": "UK",
        "timestamp": datetime.now(UTC).replace(tzinfo=None).isoformat() + "Z",
    }
    return fields | other
