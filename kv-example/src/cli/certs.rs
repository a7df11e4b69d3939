//! `certs`: a CA and certificates for development, and for clusters whose owner has no CA.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use raftkv::NodeId;
use raftkv::transport_kit::Tls;
use raftkv::transport_kit::tls::TlsFiles;
use raftkv::transport_kit::tls::dev::{DevCa, Issued, Subject, Validity};

use super::{Failure, output};

/// The CA outlives the certificates: to replace it is work.
const CA_DAYS: u32 = 3650;
/// At these a server on this machine is always reached.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[derive(Args, Debug)]
#[command(after_help = "\
Writes into the directory: ca.crt and ca.key; node-N.crt and node-N.key for each node, good for its links to other members and for its clients; client.crt and \
client.key for clients. Keys can be read by this user alone. A CA that is there is used again, so nodes can be added later; nothing that is there is \
overwritten without --renew.

Whoever has ca.key can be any node and any client: keep it off the servers. A node needs ca.crt and its own two files, a client ca.crt and the client's two.")]
pub(super) struct Certs {
    /// The directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The nodes' ids
    #[arg(long, value_name = "ID,…", value_delimiter = ',', required = true, value_parser = clap::value_parser!(u64).range(1..))]
    nodes: Vec<u64>,
    /// Where clients reach the nodes, besides localhost: names or IP addresses, for all nodes or (ID=HOST) for one
    #[arg(long, value_name = "[ID=]HOST,…", value_delimiter = ',', value_parser = parse_host)]
    hosts: Vec<Host>,
    /// For how many days the certificates are valid; the CA for ten years
    #[arg(long, value_name = "N", default_value = "365", value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Replace certificates that are there, for the same CA; nodes that run take them up by themselves
    #[arg(long)]
    renew: bool,
}

/// A host of one node, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    node: Option<u64>,
    host: String,
}

fn parse_host(text: &str) -> Result<Host, String> {
    let (node, host) = match text.split_once('=') {
        Some((id, host)) => {
            let id = id.parse().map_err(|_| format!("{id:?} is not a node's id; write ID=HOST, such as 1=10.0.0.1"))?;
            (Some(id), host)
        }
        None => (None, text),
    };
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    if !is_address && (host.is_empty() || host.contains([':', '/', ' '])) {
        return Err(format!("{host:?} is not a host; write a name or an IP address, without a port"));
    }
    Ok(Host { node, host: host.to_owned() })
}

pub(super) fn run(args: &Certs) -> Result<ExitCode, Failure> {
    if let Some(stranger) = args.hosts.iter().filter_map(|host| host.node).find(|node| !args.nodes.contains(node)) {
        return Err(Failure::usage(format!("--hosts: node {stranger} is not among those of --nodes")));
    }
    let directory = Directory { path: args.out.clone() };
    let made = directory.make(
        &args.nodes,
        &args.hosts,
        args.days,
        if args.renew { Present::Renew } else { Present::Refuse },
    )?;
    let dir = args.out.display();
    output::print(format!(
        "{}\n\nA server:   --peer-cert {dir}/node-1.crt --peer-key {dir}/node-1.key --peer-ca {dir}/ca.crt\n            \
         --client-cert {dir}/node-1.crt --client-key {dir}/node-1.key --client-ca {dir}/ca.crt\n\
         A client:   kv-example status --cacert {dir}/ca.crt --cert {dir}/client.crt --key {dir}/client.key --endpoints https://HOST:PORT,…\n            \
         (etcdctl has the same options)",
        made.join("\n")
    ).replace("node-1", &format!("node-{}", args.nodes[0])))?;
    Ok(ExitCode::SUCCESS)
}

/// What to do about a certificate that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    Refuse,
    Renew,
}

/// Where certificates are.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
}

impl Directory {
    /// A node's files.
    pub(crate) fn node(&self, id: u64) -> TlsFiles {
        let [cert, key] = ["crt", "key"].map(|kind| self.path.join(format!("node-{id}.{kind}")));
        TlsFiles::new(cert, key, self.path.join("ca.crt"))
    }

    /// A client's.
    pub(crate) fn client(&self) -> TlsFiles {
        let [cert, key] = ["crt", "key"].map(|kind| self.path.join(format!("client.{kind}")));
        TlsFiles::new(cert, key, self.path.join("ca.crt"))
    }

    /// Certificates for these nodes on this machine, and for a client, made anew each time.
    pub(crate) fn for_this_machine(&self, nodes: &[u64]) -> Result<(), Failure> {
        self.make(nodes, &[], 365, Present::Renew).map(drop)
    }

    /// Makes certificates, and tells which.
    fn make(&self, nodes: &[u64], hosts: &[Host], days: u32, present: Present) -> Result<Vec<String>, Failure> {
        let names = nodes.iter().map(|id| format!("node-{id}"));
        let names: Vec<_> = if self.path.join("client.crt").exists() && present == Present::Refuse {
            names.collect()
        } else {
            names.chain(["client".to_owned()]).collect()
        };
        let there: Vec<_> = names
            .iter()
            .flat_map(|name| [format!("{name}.crt"), format!("{name}.key")])
            .filter(|name| self.path.join(name).exists())
            .collect();
        if present == Present::Refuse && !there.is_empty() {
            return Err(Failure::usage(format!(
                "--out {}: {} is there already; nothing was changed. Say --renew to replace it, or name other nodes or another directory",
                self.path.display(),
                there.join(", ")
            )));
        }
        fs::create_dir_all(&self.path).map_err(|error| self.failed("the directory can't be made", &error))?;
        let (ca, mut made) = self.ca()?;
        let validity = Validity::days(days);
        let wrong = |reason: String| Failure::usage(format!("--hosts: {reason}"));
        let mut all = Vec::new();
        for id in nodes {
            let own =
                hosts.iter().filter(|host| host.node.is_none_or(|node| node == *id)).map(|host| host.host.clone());
            let hosts = LOCAL_HOSTS.map(str::to_owned).into_iter().chain(own).collect();
            let subject = Subject { name: format!("node-{id}"), node: Some(NodeId(*id)), hosts };
            all.push((format!("node-{id}"), ca.issue(&subject, validity).map_err(wrong)?));
            made.push(format!(
                "{}: node {id}, valid for {days} days",
                self.path.join(format!("node-{id}.crt")).display()
            ));
        }
        if names.iter().any(|name| name == "client") {
            let subject = Subject { name: "client".into(), ..Subject::default() };
            all.push(("client".into(), ca.issue(&subject, validity).map_err(wrong)?));
            made.push(format!("{}: a client, valid for {days} days", self.path.join("client.crt").display()));
        }
        // A key before its certificate: a node that looks just between the two renamings says that they don't fit, and looks again.
        let files: Vec<_> = all
            .iter()
            .flat_map(|(name, Issued { certificate, key })| {
                [(format!("{name}.key"), &**key, 0o600), (format!("{name}.crt"), &**certificate, 0o644)]
            })
            .collect();
        self.put(&files, || nodes.iter().try_for_each(|id| self.check(*id)))?;
        Ok(made)
    }

    /// The CA that is there, or a new one.
    fn ca(&self) -> Result<(DevCa, Vec<String>), Failure> {
        let (cert, key) = (self.path.join("ca.crt"), self.path.join("ca.key"));
        match (cert.exists(), key.exists()) {
            (true, true) => {
                let read = |path: &Path| {
                    fs::read_to_string(path).map_err(|error| self.failed(&path.display().to_string(), &error))
                };
                let ca = DevCa::from_pem(&read(&cert)?, &read(&key)?);
                Ok((ca.map_err(|reason| Failure::usage(format!("{}: {reason}", key.display())))?, Vec::new()))
            }
            (false, false) => {
                let ca = DevCa::new(Validity::days(CA_DAYS)).map_err(Failure::runtime)?;
                let files = [("ca.key".to_owned(), &*ca.key(), 0o600), ("ca.crt".to_owned(), ca.certificate(), 0o644)];
                self.put(&files, || Ok(()))?;
                Ok((ca, vec![format!("{}: a new CA, valid for ten years; its key is beside it", cert.display())]))
            }
            (found, _) => {
                let (there, missing) = if found { (&cert, &key) } else { (&key, &cert) };
                Err(Failure::usage(format!(
                    "{}: it is there, but {} is not: put back what is missing, or name another directory",
                    there.display(),
                    missing.display()
                )))
            }
        }
    }

    /// Whether a node could use what is to be put in its place: not if the CA's certificate is of another CA than its key.
    fn check(&self, id: u64) -> Result<(), Failure> {
        let [cert, key] = ["crt", "key"].map(|kind| self.draft(&format!("node-{id}.{kind}")));
        let tls = Tls::for_node(TlsFiles::new(cert, key, self.path.join("ca.crt")), NodeId(id));
        tls.map(drop).map_err(|error| {
            Failure::usage(format!(
                "--out {}: the CA that is there was not made by this program, or ca.crt and ca.key are not of the same one; nothing was changed: {error}",
                self.path.display()
            ))
        })
    }

    /// Where a file is until it is put in its place.
    fn draft(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.new"))
    }

    /// Writes files, each whole or not at all, and puts them in place when all of them are written and found good.
    fn put(&self, files: &[(String, &str, u32)], check: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let write = |name: &str, text: &str, mode: u32| {
            // One that is left of an earlier run could be readable by others.
            let _ = fs::remove_file(self.draft(name));
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(self.draft(name))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        let failed = |name: &str, error| self.failed(&format!("{name} can't be written"), &error);
        let written =
            files.iter().try_for_each(|(name, text, mode)| write(name, text, *mode).map_err(|e| failed(name, e)));
        if let Err(failure) = written.and_then(|()| check()) {
            for (name, _, _) in files {
                // It may not be there.
                let _ = fs::remove_file(self.draft(name));
            }
            return Err(failure);
        }
        for (name, _, _) in files {
            fs::rename(self.draft(name), self.path.join(name)).map_err(|error| failed(name, error))?;
        }
        Ok(())
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Failure {
        Failure::usage(format!("--out {}: {what}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn args(out: &Path, nodes: &[u64], renew: bool) -> Certs {
        Certs { out: out.to_owned(), nodes: nodes.to_vec(), hosts: Vec::new(), days: 1, renew }
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    /// The files, and what is in them.
    fn listing(dir: &Path) -> std::collections::BTreeMap<PathBuf, String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).map(|path| (path.clone(), text(&path))).collect()
    }

    #[test]
    fn nodes_are_added_to_a_ca_and_nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("certs");
        run(&args(&out, &[1, 2], false)).unwrap();
        let directory = Directory { path: out.clone() };
        for id in [1, 2] {
            assert!(Tls::for_node(directory.node(id), NodeId(id)).is_ok());
            assert!(Tls::for_server(directory.node(id)).is_ok());
        }
        assert!(Tls::for_client(directory.client()).is_ok());
        for name in ["ca.key", "node-1.key", "node-2.key", "client.key"] {
            let mode = fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{name}");
        }
        let before = ["ca.crt", "node-1.crt", "client.crt"].map(|name| text(&out.join(name)));

        let error = run(&args(&out, &[1, 3], false)).unwrap_err();
        assert!(
            error.message().contains("node-1.crt, node-1.key is there already; nothing was changed"),
            "{}",
            error.message()
        );
        assert!(!out.join("node-3.crt").exists());
        run(&args(&out, &[3], false)).unwrap();
        assert!(Tls::for_node(directory.node(3), NodeId(3)).is_ok());
        assert_eq!(before, ["ca.crt", "node-1.crt", "client.crt"].map(|name| text(&out.join(name))));

        run(&args(&out, &[1], true)).unwrap();
        let after = ["ca.crt", "node-1.crt", "client.crt"].map(|name| text(&out.join(name)));
        assert_eq!((before[0] == after[0], before[1] == after[1], before[2] == after[2]), (true, false, false));
    }

    #[test]
    fn half_a_ca_is_none_and_neither_is_somebody_elses() {
        let dir = tempfile::tempdir().unwrap();
        run(&args(dir.path(), &[1], false)).unwrap();
        let key = text(&dir.path().join("ca.key"));
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = run(&args(dir.path(), &[2], false)).unwrap_err();
        assert!(error.message().contains("ca.key is not"), "{}", error.message());
        let other = DevCa::new(Validity::days(1)).unwrap();
        fs::write(dir.path().join("ca.key"), other.key()).unwrap();
        let error = run(&args(dir.path(), &[2], false)).unwrap_err();
        assert!(error.message().contains("was not made by this program"), "{}", error.message());
        // Nor are certificates that are good replaced by some that are not.
        let before = listing(dir.path());
        let error = run(&args(dir.path(), &[2, 1], true)).unwrap_err();
        assert!(error.message().contains("nothing was changed"), "{}", error.message());
        assert_eq!(listing(dir.path()), before);
        fs::write(dir.path().join("ca.key"), key).unwrap();
        run(&args(dir.path(), &[2], true)).unwrap();
    }

    #[test]
    fn hosts_are_for_one_node_or_for_all() {
        assert_eq!(parse_host("1=10.0.0.1"), Ok(Host { node: Some(1), host: "10.0.0.1".into() }));
        assert_eq!(parse_host("::1"), Ok(Host { node: None, host: "::1".into() }));
        for text in ["", "a:1", "x=a", "https://a", "1="] {
            assert!(parse_host(text).is_err(), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        let hosts = vec![parse_host("7=a").unwrap()];
        let error = run(&Certs { hosts, ..args(dir.path(), &[1], false) }).unwrap_err();
        assert!(error.message().contains("node 7 is not among those of --nodes"), "{}", error.message());
    }
}
