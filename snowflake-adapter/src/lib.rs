//! The mirror of gold in Snowflake: not built yet; README §Architecture says so.
