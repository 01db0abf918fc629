//! Benches that the tests of a program share, one after the other: the verifier takes a second of CPU time for
//! each start, and there are many cases.

use std::sync::{Mutex, Once, PoisonError};

use anyhow::Result;

use super::KernelBench;

/// Those that nobody uses.
static IDLE: Mutex<Vec<KernelBench>> = Mutex::new(Vec::new());

/// Lends an idle bench to `work`, or a new one. One that a failing test had is not used again.
///
/// # Errors
/// When it can't start, or can't be made as new afterwards.
pub fn with_bench(work: impl FnOnce(&mut KernelBench)) -> Result<()> {
    static AT_EXIT: Once = Once::new();
    // SAFETY: the function stays for as long as the program, and does not unwind.
    AT_EXIT.call_once(|| unsafe {
        libc::atexit(drop_idle);
    });
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut bench = idle.map_or_else(KernelBench::start, Ok)?;
    work(&mut bench);
    bench.reset()?;
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(bench);
    Ok(())
}

/// Removes what they have made when the program ends.
extern "C" fn drop_idle() {
    drop(std::mem::take(&mut *IDLE.lock().unwrap_or_else(PoisonError::into_inner)));
}
