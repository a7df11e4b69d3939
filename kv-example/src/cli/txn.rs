//! `txn`: compare, and then write or read, in one atomic step.

use clap::Args;

use super::{Connection, Failure, output, txn_syntax};
use crate::api::etcdserverpb::TxnRequest;

const HELP: &str = "\
Comparisons (all must hold; none always holds):
  value(KEY) = VALUE      also !=  <  >
  version(KEY) = N        how often the key was written; 0 when there is none
  created(KEY) = N        the revision at which it came to exist
  modified(KEY) = N       the revision of its last change
  exists(KEY)   missing(KEY)

Operations:
  put KEY VALUE
  get KEY       get FROM TO       get --prefix BEGINNING
  del KEY       del FROM TO       del --prefix BEGINNING

Put keys and values with blanks or other unusual bytes in double quotes; \\n \\t \\\" \\\\ and \\xNN work in them.

Examples:
  # Take a lock if nobody has it, else see who does.
  kv-example txn --if 'missing(lock)' --then 'put lock me' --else 'get lock'

  # Move an amount, if both accounts are as I saw them.
  kv-example txn --if 'modified(a) = 12' --if 'modified(b) = 9' --then 'put a 70' --then 'put b 130'

  # The same from stdin: one part a line, # begins a comment.
  kv-example txn <<END
  if value(config) = \"old text\"
  then put config \"new text\"
  else get config
  END

JSON: \"revision\", \"succeeded\", and \"responses\": one object an operation, with \"op\" (put, get or del) and its answer.
Whether the comparisons held makes no difference to the exit code.";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Txn {
    /// A comparison; may be repeated, and all must hold
    #[arg(long = "if", value_name = "COMPARISON")]
    when: Vec<String>,
    /// What to do when all hold; may be repeated
    #[arg(long = "then", value_name = "OPERATION")]
    then: Vec<String>,
    /// What to do otherwise; may be repeated
    #[arg(long = "else", value_name = "OPERATION")]
    otherwise: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Txn) -> Result<(), Failure> {
    let request = if args.when.is_empty() && args.then.is_empty() && args.otherwise.is_empty() {
        let text = std::io::read_to_string(std::io::stdin()).map_err(|e| Failure::runtime(format!("stdin: {e}")))?;
        txn_syntax::script(&text).map_err(|e| Failure::usage(format!("stdin: {e}")))?
    } else {
        from_options(&args)?
    };
    let answer = args.connection.write(async |client| client.txn(request).await).await?;
    if args.connection.json {
        output::print_json(&output::txn_answer_json(&answer))
    } else {
        output::print(output::txn_text(&answer))
    }
}

fn from_options(args: &Txn) -> Result<TxnRequest, Failure> {
    fn each<T>(option: &str, texts: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Failure> {
        let mistake = |text: &str, e: String| Failure::usage(format!("{option} {text:?}: {e}"));
        texts.iter().map(|text| parse(text).map_err(|e| mistake(text, e))).collect()
    }
    Ok(TxnRequest {
        compare: each("--if", &args.when, txn_syntax::comparison)?,
        success: each("--then", &args.then, txn_syntax::operation)?,
        failure: each("--else", &args.otherwise, txn_syntax::operation)?,
    })
}
