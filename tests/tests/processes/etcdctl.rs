//! etcd's own client as a user: what it prints is what the world expects.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use raftkv_tests::process::{exclusive, notice, run};
use raftkv_tests::{Cluster, ClusterOptions};
use serde_json::Value;

use crate::three;

const LIMIT: Duration = Duration::from_secs(20);

struct Etcdctl {
    endpoints: String,
}

impl Etcdctl {
    async fn say(&self, args: &[&str], input: &str) -> Result<(bool, String)> {
        let mut all = vec!["--endpoints", &self.endpoints, "--command-timeout", "10s"];
        all.extend_from_slice(args);
        let output = run(Path::new("etcdctl"), &all, &[("ETCDCTL_API", "3")], input, LIMIT).await?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }

    /// Runs a command that must succeed, and print this.
    async fn expect(&self, args: &[&str], wanted: &str) -> Result<()> {
        let (success, text) = self.say(args, "").await?;
        ensure!(success && text == wanted, "etcdctl {args:?} printed {text:?} instead of {wanted:?}");
        Ok(())
    }

    /// Runs a command that must fail with these words.
    async fn expect_failure(&self, args: &[&str], words: &str) -> Result<()> {
        let (success, text) = self.say(args, "").await?;
        ensure!(
            !success && text.contains(words),
            "etcdctl {args:?} printed {text:?} instead of failing with {words:?}"
        );
        Ok(())
    }

    async fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["-w", "json"];
        all.extend_from_slice(args);
        let (success, text) = self.say(&all, "").await?;
        ensure!(success, "etcdctl {args:?}: {text}");
        serde_json::from_str(text.trim()).with_context(|| format!("etcdctl {args:?} printed {text:?}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_feels_at_home() -> Result<()> {
    if run(Path::new("etcdctl"), &["version"], &[("ETCDCTL_API", "3")], "", LIMIT).await.is_err() {
        notice("SKIPPED: there is no etcdctl here (Debian: apt-get install etcd-client)");
        return Ok(());
    }
    let _alone = exclusive().await?;
    let cluster = Cluster::start(ClusterOptions { nodes: 3, ..three() }).await?;
    let all = Etcdctl { endpoints: cluster.servers().join(",") };
    keys(&all).await?;
    transactions(&all).await?;
    compaction(&all).await?;
    maintenance(&all, &cluster).await?;
    members(&all).await?;
    // Addresses as they are in the list of members: etcdctl 3.4 then names `http://HOST:PORT` as the HTTP/2 authority, which is none.
    let cluster_wide = one_endpoint(&cluster, 1)?.json(&["endpoint", "status", "--cluster"]).await?;
    ensure!(cluster_wide.as_array().is_some_and(|all| all.len() == 3), "{cluster_wide}");
    let urls: Vec<_> = cluster.servers().iter().map(|address| format!("http://{address}")).collect();
    let by_url = Etcdctl { endpoints: urls.join(",") };
    let status = by_url.json(&["endpoint", "status"]).await?;
    ensure!(status.as_array().is_some_and(|all| all.len() == 3), "{status}");
    by_url.expect(&["put", "by", "url"], "OK\n").await?;
    let (success, text) = by_url.say(&["endpoint", "hashkv"], "").await?;
    ensure!(success && text.lines().count() == 3, "{text}");
    // A follower serves like any other.
    let follower = cluster.others(cluster.leader().await?.id)[0];
    let one = one_endpoint(&cluster, follower)?;
    one.expect(&["put", "at", "a follower"], "OK\n").await?;
    one.expect(&["get", "at"], "at\na follower\n").await?;
    cluster.finish()
}

fn one_endpoint(cluster: &Cluster, id: u64) -> Result<Etcdctl> {
    Ok(Etcdctl { endpoints: cluster.client(id)?.address().to_owned() })
}

async fn keys(etcdctl: &Etcdctl) -> Result<()> {
    etcdctl.expect(&["put", "greeting", "hello"], "OK\n").await?;
    etcdctl.expect(&["get", "greeting"], "greeting\nhello\n").await?;
    etcdctl.expect(&["put", "--prev-kv", "greeting", "bye"], "OK\ngreeting\nhello\n").await?;
    etcdctl.expect(&["get", "--print-value-only", "greeting"], "bye\n").await?;
    for n in 1..=3 {
        etcdctl.expect(&["put", &format!("item/{n}"), &format!("v{n}")], "OK\n").await?;
    }
    etcdctl.expect(&["get", "--prefix", "--keys-only", "item/"], "item/1\n\nitem/2\n\nitem/3\n\n").await?;
    etcdctl.expect(&["get", "--prefix", "--limit", "1", "--order", "DESCEND", "item/"], "item/3\nv3\n").await?;
    etcdctl.expect(&["get", "item/1", "item/3"], "item/1\nv1\nitem/2\nv2\n").await?;
    etcdctl.expect(&["del", "item/1"], "1\n").await?;
    etcdctl.expect(&["del", "--prefix", "item/"], "2\n").await?;
    etcdctl.expect(&["del", "item/1"], "0\n").await?;
    etcdctl.expect(&["get", "item/1"], "").await
}

async fn transactions(etcdctl: &Etcdctl) -> Result<()> {
    etcdctl.expect(&["put", "account", "90"], "OK\n").await?;
    let request = "value(\"account\") = \"90\"\n\nput account 100\nput log taken\n\nget account\n\n";
    let (success, text) = etcdctl.say(&["txn"], request).await?;
    ensure!(success && text == "SUCCESS\n\nOK\n\nOK\n", "txn printed {text:?}");
    let (success, text) = etcdctl.say(&["txn"], request).await?;
    ensure!(success && text == "FAILURE\n\naccount\n100\n", "txn printed {text:?}");
    etcdctl.expect(&["get", "log"], "log\ntaken\n").await?;

    let put = etcdctl.json(&["put", "account", "100"]).await?;
    let revision = put["header"]["revision"].as_i64().context("no revision")?;
    etcdctl.expect(&["put", "account", "70"], "OK\n").await?;
    etcdctl.expect(&["get", "--rev", &revision.to_string(), "account"], "account\n100\n").await?;
    etcdctl.expect(&["get", "account"], "account\n70\n").await
}

async fn compaction(etcdctl: &Etcdctl) -> Result<()> {
    let got = etcdctl.json(&["get", "account"]).await?;
    let revision = got["header"]["revision"].as_i64().context("no revision")?;
    let text = revision.to_string();
    etcdctl.expect(&["compaction", &text], &format!("compacted revision {revision}\n")).await?;
    let earlier = (revision - 1).to_string();
    etcdctl.expect_failure(&["get", "--rev", &earlier, "account"], "required revision has been compacted").await?;
    etcdctl.expect_failure(&["compaction", &earlier], "required revision has been compacted").await?;
    let future = (revision + 1000).to_string();
    etcdctl.expect_failure(&["get", "--rev", &future, "account"], "required revision is a future revision").await?;
    etcdctl.expect(&["get", "account"], "account\n70\n").await
}

async fn maintenance(etcdctl: &Etcdctl, cluster: &Cluster) -> Result<()> {
    let leader = cluster.leader().await?.id;
    let status = etcdctl.json(&["endpoint", "status"]).await?;
    let nodes = status.as_array().context("no array")?;
    ensure!(nodes.len() == 3, "{status}");
    for node in nodes {
        let inner = &node["Status"];
        ensure!(inner["leader"].as_u64() == Some(leader), "{node}");
        ensure!(inner["raftIndex"].as_u64() > Some(0) && inner["version"].is_string(), "{node}");
    }
    let (success, health) = etcdctl.say(&["endpoint", "health"], "").await?;
    ensure!(success && health.matches("is healthy").count() == 3, "{health}");
    let members = etcdctl.json(&["member", "list"]).await?;
    let members = members["members"].as_array().context("no members")?;
    let ids: Vec<_> = members.iter().filter_map(|member| member["ID"].as_u64()).collect();
    ensure!(ids == cluster.ids(), "{members:?}");
    Ok(())
}

/// The member that is added runs nowhere: it is a learner until it does.
async fn members(etcdctl: &Etcdctl) -> Result<()> {
    let (success, text) = etcdctl.say(&["member", "add", "four", "--peer-urls=http://127.0.0.1:1"], "").await?;
    ensure!(success && text.contains("Member                4 added to cluster"), "{text}");
    ensure!(text.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{text}");
    let (success, text) = etcdctl.say(&["member", "list"], "").await?;
    ensure!(success && text.contains("4, unstarted, , http://127.0.0.1:1, , true"), "{text}");
    etcdctl
        .expect_failure(&["member", "add", "five", "--peer-urls=http://127.0.0.1:1"], "Peer URLs already exists")
        .await?;
    etcdctl.expect_failure(&["member", "promote", "4"], "learner member which is in sync with leader").await?;
    etcdctl.expect_failure(&["member", "promote", "1"], "can only promote a learner member").await?;
    etcdctl.expect_failure(&["member", "promote", "99"], "member not found").await?;
    let (success, text) = etcdctl.say(&["member", "update", "4", "--peer-urls=http://127.0.0.1:2"], "").await?;
    ensure!(success && text.contains("Member                4 updated in cluster"), "{text}");
    let (success, text) = etcdctl.say(&["member", "remove", "4"], "").await?;
    ensure!(success && text.contains("Member                4 removed from cluster"), "{text}");
    etcdctl.expect_failure(&["member", "remove", "4"], "member not found").await?;
    let (success, text) = etcdctl.say(&["move-leader", "2"], "").await?;
    ensure!(success, "{text}");
    Ok(())
}
