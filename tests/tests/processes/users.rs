//! Users and roles: at each node, across losses of the leader, and with a new member.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kv_example::api::etcdserverpb::auth_client::AuthClient;
use kv_example::api::etcdserverpb::kv_client::KvClient;
use kv_example::api::etcdserverpb::{AuthenticateRequest, RangeRequest};
use kv_example::client::{Client, ClientOptions, Credentials};
use raftkv_tests::process::{Process, exclusive, notice, run};
use raftkv_tests::{Cluster, PATIENCE, Port};
use tonic::Request;
use tonic::transport::Channel;

use crate::{SERVER, three};

const LIMIT: Duration = Duration::from_secs(30);
const ROOT: (&str, &str) = ("root", "swordfish-root");
const ANN: (&str, &str) = ("ann", "swordfish-ann");
const DENIED: &str = "etcdserver: permission denied";
const NOBODY: &str = "etcdserver: user name is empty";

fn client(servers: &[String], (name, password): (&str, &str)) -> Result<Client> {
    let credentials = Some(Credentials { name: name.into(), password: password.into() });
    let options = ClientOptions { timeout: PATIENCE, credentials, ..ClientOptions::default() };
    Client::new(servers, options).map_err(anyhow::Error::msg)
}

/// What etcdctl says at one node, or at all.
struct Etcdctl<'a> {
    cluster: &'a Cluster,
}

impl Etcdctl<'_> {
    async fn say(&self, at: &[u64], user: Option<(&str, &str)>, line: &str) -> Result<(bool, String)> {
        let endpoints = self.cluster.servers_of(at).join(",");
        let user = user.map(|(name, password)| format!("{name}:{password}"));
        let mut args = vec!["--endpoints", &endpoints, "--command-timeout", "10s"];
        args.extend(user.iter().flat_map(|user| ["--user", user]));
        args.extend(line.split(' '));
        let output = run(Path::new("etcdctl"), &args, &[("ETCDCTL_API", "3")], "", LIMIT).await?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }

    /// Says each line, which must succeed and print this.
    async fn expect(&self, at: &[u64], user: Option<(&str, &str)>, lines: &[(&str, &str)]) -> Result<()> {
        for (line, wanted) in lines {
            let (success, text) = self.say(at, user, line).await?;
            ensure!(success && text == *wanted, "etcdctl {line} at {at:?} printed {text:?} instead of {wanted:?}");
        }
        Ok(())
    }

    async fn expect_failure(&self, at: &[u64], user: Option<(&str, &str)>, line: &str, words: &str) -> Result<()> {
        let (success, text) = self.say(at, user, line).await?;
        ensure!(!success && text.contains(words), "etcdctl {line} at {at:?} printed {text:?} instead of {words:?}");
        Ok(())
    }
}

/// From nothing to a cluster in which root may do everything, and ann may read and write what begins with `ann/`.
async fn set_up(cluster: &Cluster) -> Result<()> {
    let etcdctl = Etcdctl { cluster };
    let add = |(name, password): (&str, &str)| format!("user add {name}:{password}");
    let lines = [
        (&add(ROOT)[..], "User root created\n"),
        (&add(ANN)[..], "User ann created\n"),
        ("role add writer", "Role writer created\n"),
        ("role grant-permission writer readwrite ann/ --prefix", "Role writer updated\n"),
        ("user grant-role ann writer", "Role writer is granted to user ann\n"),
        ("user grant-role root root", "Role root is granted to user root\n"),
        ("auth enable", "Authentication Enabled\n"),
    ];
    etcdctl.expect(&cluster.ids(), None, &lines).await
}

/// The same everywhere: what ann may and may not, and that nobody may anything.
async fn check_each_node(cluster: &Cluster, ids: &[u64]) -> Result<()> {
    let etcdctl = Etcdctl { cluster };
    for id in ids {
        let at = &[*id];
        let (put, get, got) = (format!("put ann/{id} v{id}"), format!("get ann/{id}"), format!("ann/{id}\nv{id}\n"));
        etcdctl.expect(at, Some(ANN), &[(&put, "OK\n"), (&get, &got)]).await?;
        let stale = format!("{get} --consistency=s");
        etcdctl.expect(at, Some(ANN), &[(&stale, &got)]).await?;
        for line in ["get secret", "get secret --consistency=s", "put secret 1", "del ann/ --from-key", "get ann/ zzz"]
        {
            etcdctl.expect_failure(at, Some(ANN), line, DENIED).await?;
            etcdctl.expect_failure(at, None, line, NOBODY).await?;
        }
        for line in ["user list", "role list", "auth disable", "compaction 2", "user add eve:eve"] {
            etcdctl.expect_failure(at, Some(ANN), line, DENIED).await?;
            etcdctl.expect_failure(at, None, line, NOBODY).await?;
        }
        etcdctl
            .expect_failure(at, Some(("ann", "wrong")), &get, "authentication failed, invalid user ID or password")
            .await?;
        etcdctl.expect(at, Some(ROOT), &[("user list", "ann\nroot\n")]).await?;
    }
    Ok(())
}

async fn channel(cluster: &Cluster, id: u64) -> Result<Channel> {
    let address = cluster.client(id)?.address().to_owned();
    Ok(Channel::from_shared(format!("http://{address}"))?.connect().await?)
}

/// A token that one node gave is good at each.
async fn token(cluster: &Cluster, id: u64, (name, password): (&str, &str)) -> Result<String> {
    let request = AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(AuthClient::new(channel(cluster, id).await?).authenticate(request).await?.into_inner().token)
}

async fn read_with(cluster: &Cluster, id: u64, token: &str) -> Result<Result<i64, tonic::Status>> {
    let mut request = Request::new(RangeRequest { key: "ann/1".into(), ..Default::default() });
    request.metadata_mut().insert("token", token.parse()?);
    Ok(KvClient::new(channel(cluster, id).await?).range(request).await.map(|answer| answer.into_inner().count))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_hold_at_each_node_and_after_its_leader_is_lost() -> Result<()> {
    if run(Path::new("etcdctl"), &["version"], &[("ETCDCTL_API", "3")], "", LIMIT).await.is_err() {
        notice("SKIPPED: there is no etcdctl here (Debian: apt-get install etcd-client)");
        return Ok(());
    }
    let _alone = exclusive().await?;
    let options = three().with(&["--snapshot-entries", "20", "--trailing-entries", "5", "--log-level", "trace"]);
    let mut cluster = Cluster::start(options).await?;
    set_up(&cluster).await?;
    check_each_node(&cluster, &cluster.ids()).await?;

    let lost = cluster.leader().await?.id;
    let before = token(&cluster, lost, ANN).await?;
    for id in cluster.ids() {
        ensure!(
            read_with(&cluster, id, &before).await?.is_ok_and(|count| count == 1),
            "a token is refused by node {id}"
        );
    }
    cluster.kill(lost)?;
    let left = cluster.others(lost);
    cluster.leader_among(&left).await?;
    // The token is good without the node that gave it.
    ensure!(read_with(&cluster, left[0], &before).await?.is_ok(), "a token died with its node");
    let etcdctl = Etcdctl { cluster: &cluster };
    let changes = [
        ("role grant-permission writer read secret", "Role writer updated\n"),
        ("put secret 42", "OK\n"),
        ("role add reader", "Role reader created\n"),
    ];
    etcdctl.expect(&left, Some(ROOT), &changes).await?;
    for id in &left {
        etcdctl.expect(&[*id], Some(ANN), &[("get secret", "secret\n42\n")]).await?;
        etcdctl.expect_failure(&[*id], Some(ANN), "put secret 1", DENIED).await?;
    }
    let changes = [
        ("role revoke-permission writer secret", "Permission of key secret is revoked from role writer\n"),
        ("role delete reader", "Role reader deleted\n"),
    ];
    etcdctl.expect(&left, Some(ROOT), &changes).await?;
    client(&cluster.servers_of(&left), ROOT)?.user_password("ann", ANN.1).await?;
    // Enough for an image, from which the lost node will learn of all this.
    let writer = client(&cluster.servers_of(&left), ANN)?;
    for n in 0..60 {
        writer.put(format!("ann/{n}"), "x").await?;
    }
    cluster.launch(lost)?;
    cluster.caught_up(lost).await?;
    check_each_node(&cluster, &cluster.ids()).await?;
    for id in cluster.ids() {
        let refused = read_with(&cluster, id, &before).await?.err().context("a token of another password is good")?;
        ensure!(refused.code() == tonic::Code::Unauthenticated, "{refused}");
    }

    for id in cluster.ids() {
        cluster.kill(id)?;
    }
    cluster.launch_all().await?;
    check_each_node(&cluster, &cluster.ids()).await?;
    // A request that a node passes on to the leader has the same token there.
    let leader = cluster.leader().await?.id;
    let follower = cluster.others(leader)[0];
    let at_follower = cluster.servers_of(&[follower]);
    let denied = client(&at_follower, ANN)?.transfer_leadership(0).await.err().context("ann handed over leadership")?;
    ensure!(denied.to_string().contains(DENIED), "{denied}");
    client(&at_follower, ROOT)?.transfer_leadership(follower).await?;
    let now = token(&cluster, follower, ANN).await?;
    let etcdctl = Etcdctl { cluster: &cluster };
    etcdctl.expect(&[follower], Some(ROOT), &[("auth disable", "Authentication Disabled\n")]).await?;
    etcdctl.expect(&cluster.ids(), None, &[("get secret", "secret\n42\n")]).await?;
    ensure_no_secrets(&cluster, &[ROOT.1, ANN.1, &before, &now, "argon2id"])?;
    cluster.finish()
}

/// However much a node is asked to tell.
fn ensure_no_secrets(cluster: &Cluster, secrets: &[&str]) -> Result<()> {
    for id in cluster.ids() {
        let log = cluster.process(id)?.log();
        ensure!(log.contains("TRACE"), "the log of node {id} does not tell much");
        for secret in secrets {
            if let Some(at) = log.find(secret) {
                let line = log[..at].lines().count();
                anyhow::bail!("the log of node {id} shows {secret:?} in line {line}");
            }
        }
    }
    Ok(())
}

/// Clients in sessions, whose tokens expire all the time, lose no write and make none twice while leaders are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_writes_take_effect_once() -> Result<()> {
    let _alone = exclusive().await?;
    let mut cluster = Cluster::start(three().with(&["--auth-token-ttl", "1"])).await?;
    let root = client(&cluster.servers(), ROOT)?;
    root.user_add(ROOT.0, Some(ROOT.1)).await?;
    root.user_grant("root", "root").await?;
    root.auth_enable().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for n in 0..4 {
        let (client, stop) = (client(&cluster.servers(), ROOT)?, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut count: i64 = 0;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                client.put(format!("key{n}"), count.to_string()).await.with_context(|| format!("put {count}"))?;
            }
            let found = client.get(format!("key{n}")).await?.context("the key is gone")?;
            ensure!(found.version == count, "key{n} was put {count} times, and is at version {}", found.version);
            client.close().await;
            Ok(())
        }));
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let leader = cluster.leader().await?.id;
        cluster.kill(leader)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.launch(leader)?;
        cluster.caught_up(leader).await?;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_joins_as_a_user() -> Result<()> {
    let _alone = exclusive().await?;
    let options = three();
    let cluster = Cluster::start(options.clone()).await?;
    let root = client(&cluster.servers(), ROOT)?;
    root.user_add(ROOT.0, Some(ROOT.1)).await?;
    root.user_grant("root", "root").await?;
    root.auth_enable().await?;
    root.put("k", "v").await?;

    let (own_client, own_peer) = (Port::reserve()?, Port::reserve()?);
    let data = cluster.dir()?.join("n4");
    let args = ["server", "--data", &data.display().to_string(), "--join", &cluster.servers().join(",")];
    let mut args: Vec<String> = args.map(str::to_owned).into();
    args.extend(["--listen-client".into(), own_client.address(), "--listen-peer".into(), own_peer.address()]);
    args.push("--exit-on-stdin-close".into());
    args.extend(options.args);
    let mut node = Process::new("n4", Path::new(SERVER), args, cluster.dir()?.join("n4.log"));
    node.start()?;
    ensure!(!node.wait(PATIENCE).await?.success(), "nobody has joined");
    node.wait_for_log("say with --join-user, or RAFTKV_JOIN_USER, as whom to ask", PATIENCE).await?;
    node.set_env(&[("RAFTKV_JOIN_USER", format!("{}:{}", ROOT.0, ROOT.1))]);
    node.start()?;
    node.wait_for_log("votes as soon as it has caught up", PATIENCE).await?;
    // It is asked as any other, and by whom.
    let new = client(&[own_client.address()], ROOT)?;
    let deadline = Instant::now() + PATIENCE;
    while new.get("k").await.ok().flatten().is_none_or(|found| &found.value[..] != b"v") {
        ensure!(Instant::now() < deadline, "the new node does not serve: {}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let nobody = Client::new(&[own_client.address()], ClientOptions::default()).map_err(anyhow::Error::msg)?;
    let refused = nobody.get("k").await.err().context("nobody reads at the new node")?;
    ensure!(refused.to_string().contains(NOBODY), "{refused}");
    ensure!(!node.log().contains(ROOT.1), "the log shows the password");
    cluster.finish()
}
