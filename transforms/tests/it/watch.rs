//! Building on new data.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transforms::{Cadence, Options, Project, WatchProgress};

use crate::lake::{Event, append, newest, open, store};
use crate::oracle::Tables;

#[tokio::test]
async fn new_rows_are_published_until_the_token_says_stop() {
    let lake = open(&store()).await;
    let (progress, mut seen) = watch::channel(WatchProgress::default());
    let token = CancellationToken::new();
    let cadence = Cadence {
        interval: Duration::from_millis(20),
        poll: Duration::from_millis(5),
        idle_poll: Duration::from_millis(5),
    };
    let (project, options) = (Project::bundled(), Options::default());
    let watching = transforms::watch(&lake, &project, &options, &cadence, progress, token.clone());
    let appending = async {
        let mut all = Vec::new();
        for id in 0..5 {
            let new = [Event::new(id, 100, 0, i64::from(id))];
            append(&lake, &new).await;
            all.extend(new);
            let builds = u64::from(id) + 1;
            seen.wait_for(|progress| progress.builds >= builds).await.expect("the watch goes on");
            let publication = newest(&lake).await.expect("it was published");
            assert_eq!(Tables::published(&lake, &publication).await, Tables::expected(&all));
        }
        token.cancel();
    };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(watching, appending) })
        .await
        .expect("it ends when it is told to");
    ended.expect("it ends well");
}
