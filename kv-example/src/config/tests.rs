use super::*;

const PEERS: &str = "1=127.0.0.1:2380,2=127.0.0.1:22380,3=127.0.0.1:32380";

fn args() -> ServerArgs {
    ServerArgs {
        id: Some("1".into()),
        data: Some("./kv-data/n1".into()),
        peers: Some(PEERS.into()),
        listen_client: Some("127.0.0.1:2379".into()),
        ..ServerArgs::default()
    }
}

fn load(args: &ServerArgs) -> Result<ServerConfig, ConfigError> {
    ServerConfig::load(args, &|_| None)
}

fn mistake(args: &ServerArgs) -> String {
    load(args).expect_err("this is a mistake").to_string()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn the_least_that_a_server_needs() {
    let config = load(&args()).unwrap();
    assert_eq!(config.id, NodeId(1));
    assert_eq!(config.membership.voters.len(), 3);
    assert_eq!(config.listen_client.to_string(), "127.0.0.1:2379");
    assert_eq!(config.listen_peer.to_string(), "127.0.0.1:2380", "its own entry in --peers");
    assert_eq!(config.raft.election_timeout, Duration::from_millis(300));
    assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(100));
    assert_eq!((config.engine, config.engine_cache_bytes), (EngineKind::Memory, 256 << 20));
}

/// What was valid when heartbeats were more frequent by themselves is so still.
#[test]
fn a_short_election_timeout_has_more_frequent_heartbeats() {
    for (timeout, heartbeat) in [("1000", 100), ("300", 100), ("150", 50), ("2", 1)] {
        let config = load(&ServerArgs { election_timeout_ms: Some(timeout.into()), ..args() }).unwrap();
        assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(heartbeat), "{timeout}");
    }
}

#[test]
fn the_transport_is_chosen_by_its_name() {
    assert_eq!(load(&args()).unwrap().transport, TransportKind::Grpc);
    let (_dir, path) = file("transport = \"tarpc\"\n");
    assert_eq!(load(&ServerArgs { config: Some(path), ..args() }).unwrap().transport, TransportKind::Tarpc);
    let unknown = mistake(&ServerArgs { transport: Some("pigeons".into()), ..args() });
    assert_eq!(unknown, "--transport: \"pigeons\" is not a kind of transport; there are grpc, tarpc");
}

#[test]
fn the_store_is_chosen_by_its_name() {
    assert_eq!(load(&args()).unwrap().store, None);
    let (_dir, path) = file("store = \"redb\"\n");
    assert_eq!(load(&ServerArgs { config: Some(path.clone()), ..args() }).unwrap().store, Some(StoreKind::Redb));
    let files = ServerArgs { config: Some(path), store: Some("file".into()), ..args() };
    assert_eq!(load(&files).unwrap().store, Some(StoreKind::File));
    assert_eq!(load(&files).unwrap().store_cache_bytes, 64 << 20);
    let unknown = mistake(&ServerArgs { store: Some("rocks".into()), ..args() });
    assert_eq!(unknown, "--store: \"rocks\" is not a kind of store; there are file, redb");
}

#[test]
fn the_cache_of_the_log_is_that_of_a_database() {
    let (_dir, path) = file("store = \"redb\"\nstore-cache-mib = 8\n");
    let config = load(&ServerArgs { config: Some(path.clone()), ..args() }).unwrap();
    assert_eq!((config.store, config.store_cache_bytes), (Some(StoreKind::Redb), 8 << 20));
    let files = ServerArgs { config: Some(path), store: Some("file".into()), ..args() };
    assert_eq!(load(&files).unwrap().store, Some(StoreKind::File), "overridden for once");
    let useless = ServerArgs { store_cache_mib: Some("8".into()), ..args() };
    let words = "--store-cache-mib: it is the cache of --store redb, which is not said: say it as well";
    assert_eq!(mistake(&useless), words);
    let useless = ServerArgs { store: Some("file".into()), ..useless };
    assert_eq!(mistake(&useless), "--store-cache-mib: it is the cache of --store redb, and the store is file");
    let none = ServerArgs { store: Some("redb".into()), store_cache_mib: Some("0".into()), ..args() };
    assert_eq!(mistake(&none), "--store-cache-mib: must be at least 1");
}

#[test]
fn the_engine_is_chosen_by_its_name() {
    let (_dir, path) = file("engine = \"redb\"\nengine-cache-mib = 16\n");
    let config = load(&ServerArgs { config: Some(path.clone()), ..args() }).unwrap();
    assert_eq!((config.engine, config.engine_cache_bytes), (EngineKind::Redb, 16 << 20));
    let memory = ServerArgs { config: Some(path), engine: Some("memory".into()), ..args() };
    assert_eq!(load(&memory).unwrap().engine, EngineKind::Memory);
    let useless = ServerArgs { engine_cache_mib: Some("64".into()), ..args() };
    assert_eq!(mistake(&useless), "--engine-cache-mib: it is the cache of --engine redb, and the engine is memory");
    let useless = ServerArgs { engine: Some("memory".into()), ..useless };
    assert_eq!(mistake(&useless), "--engine-cache-mib: it is the cache of --engine redb, and the engine is memory");
    let unknown = mistake(&ServerArgs { engine: Some("rocks".into()), ..args() });
    assert_eq!(unknown, "--engine: \"rocks\" is not an engine; there are memory, redb");
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let (_dir, path) = file("cluster-name = \"from-file\"\nheartbeat-ms = 40\nelection-timeout-ms = 500\n");
    let args = ServerArgs { config: Some(path), heartbeat_ms: Some("20".into()), ..args() };
    let env = |name: &str| match name {
        "RAFTKV_HEARTBEAT_MS" => Some("30".to_owned()),
        "RAFTKV_CLUSTER_NAME" => Some("from-env".to_owned()),
        _ => None,
    };
    let config = ServerConfig::load(&args, &env).unwrap();
    assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(20), "flag");
    assert_eq!(config.cluster_name, "from-env", "environment");
    assert_eq!(config.raft.election_timeout, Duration::from_millis(500), "file");
    assert_eq!(config.raft.write_timeout, Duration::from_secs(4), "default");
}

#[test]
fn a_file_can_say_everything() {
    let (_dir, path) = file(
        "id = 2\ndata = \"/var/lib/raftkv\"\nlisten-client = \"0.0.0.0:2379\"\nlisten-peer = \"0.0.0.0:2380\"\n\
         listen-metrics = \"127.0.0.1:9401\"\n\
         log-level = \"debug\"\nworkers = 3\nshutdown-timeout-ms = 100\nrequest-timeout-ms = 900\nmax-request-bytes = 1000\n\
         max-pending-requests = 7\nmax-client-connections = 8\n[peers]\n1 = \"a:2380\"\n2 = \"b:2380\"\n",
    );
    let config = load(&ServerArgs { config: Some(path), ..ServerArgs::default() }).unwrap();
    assert_eq!(config.id, NodeId(2));
    assert_eq!(config.membership.to_string(), "1=a:2380,2=b:2380");
    assert_eq!(config.listen_peer.to_string(), "0.0.0.0:2380");
    assert_eq!(config.listen_metrics.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:9401"));
    assert_eq!(config.max_request_bytes, 1000);
    assert_eq!(config.raft.max_pending_requests, 7);
    assert_eq!(config.limits.client_connections, 8);
    assert_eq!(config.raft.read_timeout, Duration::from_millis(900));
    assert_eq!(config.shutdown_timeout, Duration::from_millis(100));
    assert_eq!(config.workers, 3);
}

#[test]
fn threads_that_serve_are_counted() {
    let workers = |n: &str| ServerArgs { workers: Some(n.into()), ..args() };
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(load(&args()).unwrap().workers, cores.div_ceil(2));
    assert_eq!(load(&workers("7")).unwrap().workers, 7);
    assert_eq!(mistake(&workers("0")), "--workers: must be at least 1");
    assert!(mistake(&workers("5000")).starts_with("--workers: must be at most 1024"));
}

#[test]
fn a_node_can_be_preferred_or_kept_from_leading() {
    let raft = |args: &ServerArgs| load(args).map(|config| (config.raft.priority, config.raft.may_lead));
    assert_eq!(raft(&args()), Ok((0, true)));
    let told = ServerArgs { priority: Some("7".into()), no_lead: true, ..args() };
    assert_eq!(raft(&told), Ok((7, false)));
    assert_eq!(raft(&ServerArgs { priority: Some("0".into()), ..args() }), Ok((0, true)));
    let (_dir, path) = file("priority = 3\nno-lead = true\n");
    assert_eq!(raft(&ServerArgs { config: Some(path), ..args() }), Ok((3, false)));
    let text = mistake(&ServerArgs { priority: Some("-1".into()), ..args() });
    assert!(text.starts_with("--priority: \"-1\" is not a whole number from 0"), "{text}");
    let env = |name: &str| (name == "RAFTKV_NO_LEAD").then(|| "perhaps".to_owned());
    let text = ServerConfig::load(&args(), &env).unwrap_err().to_string();
    assert!(text.contains("RAFTKV_NO_LEAD") && text.contains("true or false"), "{text}");
}

#[test]
fn leases_are_off_unless_asked_for() {
    assert_eq!(load(&args()).unwrap().raft.lease_drift, None);
    let drift = |ms: &str| ServerArgs { lease_drift_ms: Some(ms.into()), ..args() };
    assert_eq!(load(&drift("10")).unwrap().raft.lease_drift, Some(Duration::from_millis(10)));
    assert!(mistake(&drift("0")).contains("--lease-drift-ms: must be at least 1"));
    assert!(mistake(&drift("1%")).contains("--lease-drift-ms: \"1%\" is not a whole number of milliseconds"));
    assert!(mistake(&drift("9000")).contains("less than a heartbeat_interval"));
}

#[test]
fn the_environment_can_say_everything_that_is_required() {
    let env = |name: &str| {
        Some(match name {
            "RAFTKV_ID" => "3".to_owned(),
            "RAFTKV_DATA" => "/tmp/x".to_owned(),
            "RAFTKV_PEERS" => PEERS.to_owned(),
            "RAFTKV_LISTEN_CLIENT" => "localhost:2379".to_owned(),
            _ => return None,
        })
    };
    assert_eq!(ServerConfig::load(&ServerArgs::default(), &env).unwrap().id, NodeId(3));
}

#[test]
fn what_is_missing_is_named_with_the_three_ways_to_say_it() {
    let text = mistake(&ServerArgs { id: None, ..args() });
    for part in ["--id is missing", "--id 1", "RAFTKV_ID=1", "`id`"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(mistake(&ServerArgs { data: None, ..args() }).contains("--data is missing"));
    assert!(mistake(&ServerArgs { peers: None, ..args() }).contains("--peers is missing"));
    assert!(mistake(&ServerArgs { listen_client: None, ..args() }).contains("--listen-client is missing"));
}

#[test]
fn an_id_that_is_not_among_the_peers() {
    let text = mistake(&ServerArgs { id: Some("7".into()), ..args() });
    assert!(text.contains("--id: node 7 is not in --peers, which names 1, 2, 3"), "{text}");
    assert!(text.contains("add 7=HOST:PORT"), "{text}");
}

#[test]
fn duplicates_among_the_peers() {
    let text = mistake(&ServerArgs { peers: Some("1=a:1,1=b:1".into()), ..args() });
    assert!(text.contains("--peers: node 1 is named twice"), "{text}");
    let text = mistake(&ServerArgs { peers: Some("1=a:1,2=a:1".into()), ..args() });
    assert!(text.contains("nodes 1 and 2 have the same address, a:1"), "{text}");
}

#[test]
fn addresses_that_are_none() {
    for (address, reason) in [
        ("localhost", "has no port"),
        ("localhost:", "is not a port"),
        ("localhost:0", "is not a port"),
        ("localhost:70000", "is not a port"),
        (":2379", "no valid host"),
        ("a b:2379", "no valid host"),
        ("::1:2379", "brackets"),
        ("http://localhost:2379", "leave out the scheme"),
    ] {
        let text = mistake(&ServerArgs { listen_client: Some(address.into()), ..args() });
        assert!(text.starts_with("--listen-client: ") && text.contains(reason), "{address}: {text}");
    }
    let text = mistake(&ServerArgs { peers: Some("1=a".into()), ..args() });
    assert!(text.starts_with("--peers: node 1: \"a\" has no port"), "{text}");
    let text = mistake(&ServerArgs { peers: Some("a:1,b:2".into()), ..args() });
    assert!(text.contains("is not ID=HOST:PORT"), "{text}");
    let text = mistake(&ServerArgs { peers: Some("0=a:1".into()), ..args() });
    assert!(text.contains("whole numbers from 1"), "{text}");
    let text = mistake(&ServerArgs { peers: Some(" , ".into()), ..args() });
    assert!(text.contains("at least one voter"), "{text}");
}

#[test]
fn where_members_serve_clients() {
    let args = |text: &str| ServerArgs { advertise_clients: Some(text.into()), ..args() };
    let config = load(&args("1=a:2379,3=c:2379")).unwrap();
    assert_eq!(config.client_addresses[&NodeId(3)], "c:2379");
    assert!(!config.client_addresses.contains_key(&NodeId(2)));
    let text = mistake(&args("4=d:2379"));
    assert!(text.contains("--advertise-clients: node 4 is no member"), "{text}");
}

#[test]
fn ipv6_addresses_are_addresses() {
    let config = load(&ServerArgs { listen_client: Some("[::1]:2379".into()), ..args() }).unwrap();
    assert_eq!(config.listen_client.host(), "::1");
    assert_eq!(config.listen_client.to_string(), "[::1]:2379");
}

#[test]
fn clients_and_members_on_one_port() {
    let text = mistake(&ServerArgs { listen_client: Some("127.0.0.1:2380".into()), ..args() });
    assert!(text.contains("--listen-client") && text.contains("a port each"), "{text}");
}

#[test]
fn a_heartbeat_slower_than_half_of_the_election_timeout() {
    let text = mistake(&ServerArgs { heartbeat_ms: Some("200".into()), ..args() });
    assert!(text.contains("--heartbeat-ms: 200 ms is more than half of the election timeout (300 ms"), "{text}");
    assert!(text.contains("a third is good: 100 ms"), "what to do: {text}");
    let text = mistake(&ServerArgs { election_timeout_ms: Some("1".into()), ..args() });
    assert!(text.contains("--election-timeout-ms: 1 ms is too short"), "{text}");
    let short = ServerArgs { election_timeout_ms: Some("2".into()), ..args() };
    assert_eq!(ServerConfig::load(&short, &|_| None).unwrap().raft.heartbeat_interval, Duration::from_millis(1));
}

#[test]
fn a_number_that_is_none_is_reported_where_it_was_said() {
    let text = mistake(&ServerArgs { id: Some("one".into()), ..args() });
    assert!(text.contains("--id: \"one\" is not a node number"), "{text}");
    let env = |name: &str| (name == "RAFTKV_HEARTBEAT_MS").then(|| "fast".to_owned());
    let text = ServerConfig::load(&args(), &env).unwrap_err().to_string();
    assert!(text.contains("environment variable RAFTKV_HEARTBEAT_MS: \"fast\""), "{text}");
    let text = mistake(&ServerArgs { max_pending_requests: Some("0".into()), ..args() });
    assert!(text.contains("--max-pending-requests: must be at least 1"), "{text}");
}

#[test]
fn an_unknown_key_in_the_file_is_shown_with_its_line_and_the_known_ones() {
    let (_dir, path) = file("id = 1\nlisten-cleint = \"127.0.0.1:2379\"\n");
    let text = mistake(&ServerArgs { config: Some(path.clone()), ..args() });
    for part in [&*path.display().to_string(), "line 2", "listen-cleint", "`listen-client`"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_password_in_the_file_is_not_shown_whatever_is_wrong_with_it() {
    let wrong = [
        // A mistake in its line, or beside it.
        ("id = 1\njoin-user = \"root:s3cret\n", "line 2, column "),
        ("join-user \"root:s3cret\"", "line 1, column "),
        ("joinuser = \"root:s3cret\"", "unknown field `joinuser`, expected one of `id`"),
        ("id = 1\njoin-user = \"root:s3cret\" x", "line 2, column "),
        ("join-user = \"\"\"\nroot:s3cret\nid = 1", "line "),
        ("join-user = \"a\"\njoin-user = \"root:s3cret\"", "line 2, column 1: duplicate key"),
        // A value that can't be it.
        ("join-user = [\"root:s3cret\"]", "line 1, column 13: this must be a string \"NAME:PASSWORD\""),
        ("join-user = { root = \"s3cret\" }", "this must be a string"),
        ("join-user = \"s3cret\"\njoin = \"a:1\"", "`join-user` in "),
    ];
    for (text, told) in wrong {
        let (_dir, path) = file(text);
        let bare =
            ServerArgs { config: Some(path.clone()), id: None, peers: None, listen_peer: Some("b:1".into()), ..args() };
        let message = mistake(&bare);
        assert!(message.contains(&path.display().to_string()) && message.contains(told), "{told} is not in {message}");
        assert!(!message.contains("s3cret"), "{message}");
    }
    let (_dir, path) = file("join-user = 3141592\n");
    assert!(!mistake(&ServerArgs { config: Some(path), ..args() }).contains("3141592"));
    // What is known to be harmless is shown as ever.
    let (_dir, path) = file("join-user = \"root:s3cret\"\nid = \"one\"\n");
    let text = mistake(&ServerArgs { config: Some(path), ..args() });
    assert!(text.contains("id = \"one\"") && !text.contains("s3cret"), "{text}");
    let shown = format!("{:?}", ServerArgs { join_user: Some(Secret("root:s3cret".into())), ..args() });
    assert!(shown.contains("join_user: Some((not shown))") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_wrong_type_or_no_file_is_shown_with_its_place() {
    let (_dir, path) = file("id = \"one\"\n");
    let text = mistake(&ServerArgs { config: Some(path), ..args() });
    assert!(text.contains("line 1") && text.contains("id = \"one\""), "{text}");
    let (_dir, path) = file("peers = 3\n");
    let text = mistake(&ServerArgs { config: Some(path), ..args() });
    assert!(text.contains("must be a table of ID"), "{text}");
    let text = mistake(&ServerArgs { config: Some("/nonexistent/x.toml".into()), ..args() });
    assert!(text.contains("--config /nonexistent/x.toml: can't read the file"), "{text}");
}

#[test]
fn a_log_level_that_is_none() {
    let text = mistake(&ServerArgs { log_level: Some("loud".into()), ..args() });
    assert!(text.starts_with("--log-level: \"loud\" is no log level"), "{text}");
    assert!(load(&ServerArgs { log_level: Some("info,raftkv=debug".into()), ..args() }).is_ok());
}

#[test]
fn a_data_directory_below_a_file() {
    let (_dir, path) = file("");
    let text = prepare_data_dir(&path.join("n1")).unwrap_err().to_string();
    assert!(text.contains("--data") && text.contains("can't create the directory"), "{text}");
}

#[test]
fn every_option_documents_its_environment_variable() {
    use clap::Args as _;
    let command = ServerArgs::augment_args(clap::Command::new("server"));
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let name = arg.get_long().unwrap_or_default();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("[env: {}]", env_name(name))), "--{name}: {help}");
    }
}

#[test]
fn the_example_file_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("node.example.toml");
    let config = load(&ServerArgs { config: Some(path), ..ServerArgs::default() }).unwrap();
    assert_eq!((config.id, config.membership.voters.len(), config.client_addresses.len()), (NodeId(1), 3, 3));
}

#[test]
fn an_address_that_nobody_can_go_to_is_not_advertised() {
    let listening = |address: &str, advertised: Option<&str>| ServerArgs {
        listen_client: Some(address.into()),
        advertise_clients: advertised.map(str::to_owned),
        peers: Some("1=10.0.0.1:2380,2=10.0.0.2:2380".into()),
        ..args()
    };
    let own = |args: &ServerArgs| load(args).unwrap().client_addresses[&NodeId(1)].clone();
    assert_eq!(own(&listening("10.0.0.9:2379", None)), "10.0.0.9:2379");
    assert_eq!(own(&listening("0.0.0.0:2379", None)), "10.0.0.1:2379", "the host at which members reach it");
    assert_eq!(own(&listening("[::]:2379", None)), "10.0.0.1:2379");
    assert_eq!(own(&listening("0.0.0.0:2379", Some("1=kv.example.org:80"))), "kv.example.org:80");
    assert_eq!(own(&listening("0.0.0.0:2379", Some("2=b:80"))), "10.0.0.1:2379", "others were advertised, not itself");

    let words = mistake(&listening("0.0.0.0:2379", Some("1=0.0.0.0:2379")));
    assert!(words.contains("--advertise-clients") && words.contains("nobody can go to 0.0.0.0:2379"), "{words}");
    let words = mistake(&ServerArgs { peers: Some("1=[::]:2380,2=b:2380".into()), ..args() });
    assert!(words.contains("--peers") && words.contains("--listen-peer"), "{words}");
}

fn joining() -> ServerArgs {
    ServerArgs {
        data: Some("./kv-data/n4".into()),
        join: Some("10.0.0.1:2379, http://b:2379/".into()),
        listen_client: Some("0.0.0.0:2379".into()),
        listen_peer: Some("10.0.0.4:2380".into()),
        ..ServerArgs::default()
    }
}

#[test]
fn a_node_that_joins_needs_no_peers_and_no_id() {
    let config = load(&joining()).unwrap();
    let join = config.join.clone().unwrap();
    assert_eq!(join.endpoints, ["10.0.0.1:2379", "b:2379"]);
    assert_eq!((join.address.to_string(), join.learner, config.id), ("10.0.0.4:2380".into(), false, NodeId(0)));
    assert_eq!(config.client_address, "10.0.0.4:2379", "the host at which members reach it");
    let advertise_peer = Some("four:2380".into());
    let listen_peer = Some("0.0.0.0:2380".into());
    let args = ServerArgs { id: Some("4".into()), learner: true, advertise_peer, listen_peer, ..joining() };
    let config = load(&args).unwrap();
    let join = config.join.unwrap();
    assert_eq!((join.address.to_string(), join.learner, config.id), ("four:2380".into(), true, NodeId(4)));
    let (_dir, path) = file("join = \"a:1\"\nlearner = true\nadvertise-peer = \"d:4\"\nlisten-peer = \"0.0.0.0:4\"\n");
    let args = ServerArgs { config: Some(path), join: None, listen_peer: None, ..joining() };
    let join = load(&args).unwrap().join.unwrap();
    assert_eq!((join.endpoints, join.address.to_string(), join.learner), (vec!["a:1".into()], "d:4".into(), true));
}

#[test]
fn what_a_node_that_joins_can_get_wrong() {
    let text = mistake(&ServerArgs { peers: Some(PEERS.into()), ..joining() });
    assert!(text.contains("--join and --peers are both given"), "{text}");
    let text = mistake(&ServerArgs { listen_peer: None, ..joining() });
    assert!(text.contains("--listen-peer is missing: with --join"), "{text}");
    let text = mistake(&ServerArgs { listen_peer: Some("0.0.0.0:2380".into()), ..joining() });
    assert!(text.contains("--advertise-peer"), "{text}");
    for join in ["", " , ", "nowhere", "ftp://a:1"] {
        let text = mistake(&ServerArgs { join: Some(join.into()), ..joining() });
        assert!(text.starts_with("--join: "), "{text}");
    }
    let text = mistake(&ServerArgs { join: None, ..joining() });
    assert!(text.contains("--id is missing"), "{text}");
    let text = mistake(&ServerArgs { peers: None, ..args() });
    assert!(text.contains("say --join"), "{text}");
    let (_dir, path) = file("learner = \"perhaps\"\n");
    assert!(mistake(&ServerArgs { config: Some(path), ..joining() }).contains("learner"));
    let env = |name: &str| (name == "RAFTKV_LEARNER").then(|| "perhaps".to_owned());
    let text = ServerConfig::load(&joining(), &env).unwrap_err().to_string();
    assert!(text.contains("RAFTKV_LEARNER") && text.contains("true or false"), "{text}");
}

#[test]
fn when_images_are_taken() {
    let raft = |args: &ServerArgs| load(args).map(|config| (config.raft.snapshot_entries, config.raft.snapshot_bytes));
    assert_eq!(raft(&args()), Ok((100_000, 256 << 20)));
    let told = ServerArgs { snapshot_entries: Some("5".into()), snapshot_mib: Some("2".into()), ..args() };
    assert_eq!(raft(&told), Ok((5, 2 << 20)));
    let (_dir, path) = file("snapshot-mib = 3\n");
    assert_eq!(raft(&ServerArgs { config: Some(path), ..args() }), Ok((100_000, 3 << 20)));
    let text = mistake(&ServerArgs { snapshot_mib: Some("0".into()), ..args() });
    assert!(text.starts_with("--snapshot-mib: must be at least 1"), "{text}");
}

fn with_certificates(args: ServerArgs) -> ServerArgs {
    let file = |name: &str| Some(name.to_owned());
    let tls = TlsArgs {
        peer_cert: file("p.crt"),
        peer_key: file("p.key"),
        peer_ca: file("p.ca"),
        client_cert: file("c.crt"),
        client_key: file("c.key"),
        client_ca: file("c.ca"),
    };
    ServerArgs { tls, ..args }
}

#[test]
fn certificates_are_named_by_flags_the_environment_or_the_file() {
    use raftkv::transport_kit::tls::TlsFiles;
    assert_eq!(load(&args()).unwrap().tls, TlsConfig::default());
    let all = TlsConfig {
        peers: Some(TlsFiles::new("p.crt", "p.key", "p.ca")),
        clients: Some(TlsFiles::new("c.crt", "c.key", "c.ca")),
    };
    assert_eq!(load(&with_certificates(args())).unwrap().tls, all);
    let names = ["peer-cert", "peer-key", "peer-ca", "client-cert", "client-key", "client-ca"];
    let values = ["p.crt", "p.key", "p.ca", "c.crt", "c.key", "c.ca"];
    let env = |name: &str| {
        let at = names.iter().position(|option| env_name(option) == name)?;
        Some(values[at].to_owned())
    };
    assert_eq!(ServerConfig::load(&args(), &env).unwrap().tls, all);
    let lines: Vec<_> = names.iter().zip(values).map(|(name, value)| format!("{name} = \"{value}\"\n")).collect();
    let (_dir, path) = file(&lines.concat());
    assert_eq!(load(&ServerArgs { config: Some(path), ..args() }).unwrap().tls, all);
}

#[test]
fn certificates_come_with_their_keys_and_a_ca() {
    let mut peers = with_certificates(args());
    peers.tls.peer_key = None;
    let text = mistake(&peers);
    assert!(text.starts_with("--peer-cert is given without --peer-key; "), "{text}");
    let mut clients = with_certificates(args());
    (clients.tls.client_cert, clients.tls.client_key) = (None, None);
    let text = mistake(&clients);
    assert!(text.starts_with("--client-ca is given without --client-cert and --client-key; "), "{text}");
    clients.tls.client_ca = Some(String::new());
    let text = mistake(&clients);
    assert!(text.starts_with("--client-ca: there is no name of a file"), "{text}");
}

#[test]
fn a_node_joins_over_tls_if_it_has_certificates_for_clients() {
    let join = |args: &ServerArgs| load(args).map(|config| config.join.unwrap().endpoints);
    let over = |text: &str| ServerArgs { join: Some(text.into()), ..joining() };
    assert_eq!(join(&with_certificates(over("https://a:1/,b:2"))).unwrap(), ["a:1", "b:2"]);
    let text = mistake(&with_certificates(over("http://a:1")));
    assert!(text.starts_with("--join: say https://a:1, or leave the scheme out"), "{text}");
    let text = mistake(&over("https://a:1"));
    assert!(text.contains("--client-cert"), "{text}");
}

#[test]
fn a_login_holds_as_long_as_is_said_and_who_joins_says_as_whom() {
    assert_eq!(load(&args()).unwrap().auth_token_ttl, Duration::from_secs(300));
    let (_dir, path) = file("auth-token-ttl = 60\njoin = \"a:1\"\njoin-user = \"root:a:b\"\nlisten-peer = \"c:3\"\n");
    let joining = ServerArgs { config: Some(path), peers: None, ..args() };
    let config = load(&joining).unwrap();
    assert_eq!(config.auth_token_ttl, Duration::from_secs(60));
    let user = config.join.unwrap().user.unwrap();
    assert_eq!((&user.name[..], &user.password[..]), ("root", "a:b"));
    let wrong = mistake(&ServerArgs { join_user: Some(Secret("secret".into())), ..joining.clone() });
    assert_eq!(wrong, "--join-user: this must be NAME:PASSWORD", "without the secret");
    let never = mistake(&ServerArgs { auth_token_ttl: Some("0".into()), ..args() });
    assert_eq!(never, "--auth-token-ttl: must be at least 1");
}

#[test]
fn limits_from_each_of_the_three_places() {
    let limits = load(&args()).unwrap().limits;
    assert_eq!((limits.client_connections, limits.peer_connections, limits.metrics_connections), (8192, 1024, 16));
    assert_eq!((limits.address_percent, limits.header_bytes, limits.connection_requests), (50, 16 << 10, 1024));
    assert_eq!(limits.connection_window_bytes, 4 << 20);
    assert_eq!((limits.health_watches, limits.pending_bytes, limits.response_bytes), (128, 512 << 20, 256 << 20));
    let members = MemberLimits { message_bytes: 16 << 20, window_bytes: 8 << 20, requests: 1024, streams: 8 };
    assert_eq!(limits.members, members);
    let (_dir, path) = file(
        "max-client-connections = 1\nmax-peer-connections = 2\nmax-metrics-connections = 3\nmax-address-percent = 4\n\
         handshake-timeout-ms = 5\nclient-silence-ms = 6\nreceive-timeout-ms = 7\nmax-header-bytes = 8192\n\
         max-connection-requests = 9\nmax-pending-mib = 10\nmax-response-mib = 11\nmax-health-watches = 12\n\
         max-peer-message-mib = 13\nmax-peer-window-mib = 14\nmax-peer-requests = 15\nmax-peer-streams = 16\nmax-client-window-mib = 17\n",
    );
    let told = LimitArgs {
        max_peer_connections: Some("20".into()),
        max_peer_requests: Some("21".into()),
        ..LimitArgs::default()
    };
    let args = ServerArgs { config: Some(path), limits: told, ..args() };
    let said = ["RAFTKV_MAX_PENDING_MIB", "RAFTKV_MAX_PEER_CONNECTIONS", "RAFTKV_MAX_PEER_WINDOW_MIB"];
    let env = |name: &str| said.contains(&name).then(|| "30".to_owned());
    let limits = ServerConfig::load(&args, &env).unwrap().limits;
    let wanted = Limits {
        client_connections: 1,
        peer_connections: 20,
        metrics_connections: 3,
        address_percent: 4,
        handshake_timeout: Duration::from_millis(5),
        client_silence: Duration::from_millis(6),
        receive_timeout: Duration::from_millis(7),
        header_bytes: 8192,
        connection_requests: 9,
        connection_window_bytes: 17 << 20,
        health_watches: 12,
        pending_bytes: 30 << 20,
        response_bytes: 11 << 20,
        members: MemberLimits { message_bytes: 13 << 20, window_bytes: 30 << 20, requests: 21, streams: 16 },
    };
    assert_eq!(limits, wanted);
}

#[test]
fn limits_that_make_no_sense() {
    let with = |limits: LimitArgs| mistake(&ServerArgs { limits, ..args() });
    let text = with(LimitArgs { max_address_percent: Some("101".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-address-percent: 101 is not a percentage"), "{text}");
    let text = with(LimitArgs { max_header_bytes: Some("100".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-header-bytes: 100 bytes are too few") && text.contains("8192"), "{text}");
    let text = with(LimitArgs { max_pending_mib: Some("0".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-pending-mib: must be at least 1"), "{text}");
    let text = with(LimitArgs { max_peer_window_mib: Some("2048".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-peer-window-mib: 2048 MiB") && text.contains("at most 2047"), "{text}");
    let text = with(LimitArgs { max_client_window_mib: Some("2048".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-client-window-mib: 2048 MiB") && text.contains("at most 2047"), "{text}");
    let text = with(LimitArgs { max_peer_requests: Some("3".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-peer-requests: 3 are too few") && text.contains("at least 4"), "{text}");
    let text = with(LimitArgs { max_peer_message_mib: Some("3".into()), ..LimitArgs::default() });
    assert!(text.starts_with("--max-peer-message-mib: 3 MiB are too few") && text.contains("at least 4"), "{text}");
}

/// Else a node could take requests that it can't pass on to the others.
#[test]
fn members_can_send_each_other_what_clients_send_them() {
    let message = |request: &str, told: Option<&str>| {
        let limits = LimitArgs { max_peer_message_mib: told.map(str::to_owned), ..LimitArgs::default() };
        let args = ServerArgs { max_request_bytes: Some(request.into()), limits, ..args() };
        load(&args).map(|config| config.limits.members.message_bytes)
    };
    assert_eq!(message("1572864", Some("4")), Ok(4 << 20));
    assert_eq!(message("20000000", None), Ok(39 << 20));
    let text = message("20000000", Some("16")).unwrap_err().to_string();
    assert!(text.contains("--max-request-bytes") && text.contains("at least 39"), "{text}");
    assert_eq!(message(&u64::MAX.to_string(), None), Ok(usize::MAX));
}

#[test]
fn what_one_address_may_have_is_something_and_never_more_than_all() {
    let limits = |percent: &str| {
        let limits = LimitArgs { max_address_percent: Some(percent.into()), ..LimitArgs::default() };
        load(&ServerArgs { limits, ..args() }).unwrap().limits
    };
    assert_eq!([0, 1, 3, 100, 8192].map(|all| limits("50").of_address(all)), [1, 1, 1, 50, 4096]);
    assert_eq!([1, 3, usize::MAX].map(|all| limits("100").of_address(all)), [1, 3, usize::MAX]);
    assert_eq!(limits("1").of_address(199), 1);
}

/// The log and the images hold what users log in with.
#[test]
fn a_data_directory_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a/b");
    prepare_data_dir(&data).unwrap();
    prepare_data_dir(&data).unwrap();
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
}
