//! Writes samples of what each decoder takes into `corpus/`, for a fuzzer to begin with.

use std::fs;
use std::path::Path;

use raftkv::testing::Random;

const SAMPLES: u64 = 50;

fn main() -> std::io::Result<()> {
    for (package, targets) in raftkv_fuzz::PACKAGES {
        for target in *targets {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{package}_{}", target.name));
            fs::create_dir_all(&dir)?;
            for seed in 0..SAMPLES {
                fs::write(dir.join(format!("sample-{seed}")), (target.sample)(&mut Random::new(seed)))?;
            }
        }
    }
    Ok(())
}
