//! Runs programs in the kernel on one frame and tells the time of a pass.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions, Xdp},
};

use crate::frame::LENGTH;

/// Passes in one call; short, so that one of several calls is not interrupted.
const PASSES: u32 = 10_000;
/// Calls of which the fastest counts.
const CALLS: usize = 8;
/// Size of `struct __sk_buff`.
const CONTEXT: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

/// What a program is run on.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The frame that each pass begins with.
    pub(crate) frame: [u8; LENGTH],
    /// Flows that the frame is sent in, in turn: a power of two.
    pub(crate) flows: u32,
    /// Device that the program is at.
    pub(crate) device: u32,
    /// Device that the packet came in by; zero if a socket sent it.
    pub(crate) came_by: u32,
}

impl Input {
    fn context(&self) -> [u8; CONTEXT] {
        let mut context = [0; CONTEXT];
        context[INGRESS_IFINDEX..][..4].copy_from_slice(&self.came_by.to_ne_bytes());
        context[IFINDEX..][..4].copy_from_slice(&self.device.to_ne_bytes());
        context
    }
}

/// A frame after a pass, and the program's verdict.
pub(crate) struct Output {
    /// The frame.
    pub(crate) frame: [u8; LENGTH],
    /// The verdict.
    pub(crate) verdict: i32,
}

/// The benchmark's own programs.
pub(crate) struct Harness {
    ebpf: Ebpf,
}

impl Harness {
    /// Loads them.
    pub(crate) fn load() -> Result<Self> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));
        let mut ebpf = Ebpf::load(object).context("load the benchmark's programs")?;
        for name in ["tc_noop", "tc_harness"] {
            let program: &mut SchedClassifier = program_mut(&mut ebpf, name)?.try_into()?;
            program.load()?;
        }
        for name in ["xdp_noop", "xdp_harness", "reference_nat"] {
            let program: &mut Xdp = program_mut(&mut ebpf, name)?.try_into()?;
            program.load()?;
        }
        Ok(Self { ebpf })
    }

    /// Teaches the reference NAT one flow: the twelve bytes of addresses and ports of two frames.
    pub(crate) fn teach(&mut self, from: &[u8; LENGTH], to: &[u8; LENGTH]) -> Result<()> {
        let map = self.ebpf.map_mut("NAT").context("no map NAT")?;
        let mut nat: HashMap<&mut MapData, [u8; 12], [u8; 12]> = HashMap::try_from(map)?;
        let ends = |frame: &[u8; LENGTH]| -> Result<[u8; 12]> { Ok(frame[26..38].try_into()?) };
        Ok(nat.insert(ends(from)?, ends(to)?, 0)?)
    }

    /// Nanoseconds of one pass of the reference NAT, and what it makes of the frame.
    pub(crate) fn reference(&mut self, input: &Input) -> Result<(f64, Output)> {
        self.prepare(input)?;
        let plain = self.xdp("xdp_noop", input)?.0;
        self.call_xdp("xdp_noop")?;
        let own = self.xdp("xdp_harness", input)?.0;
        self.call_xdp("reference_nat")?;
        let (all, output) = self.xdp("xdp_harness", input)?;
        Ok((all - own + plain, output))
    }

    /// Nanoseconds of one pass of the program that does nothing: at XDP, and at TC.
    pub(crate) fn noops(&self, input: &Input) -> Result<[f64; 2]> {
        Ok([self.xdp("xdp_noop", input)?.0, self.tc("tc_noop", input)?.0])
    }

    /// Nanoseconds of one pass of a TC program, and what it makes of the frame.
    pub(crate) fn measure(&mut self, program: &ProgramFd, input: &Input) -> Result<(f64, Output)> {
        self.prepare(input)?;
        let plain = self.tc("tc_noop", input)?.0;
        let noop: &SchedClassifier = self.program("tc_noop")?.try_into()?;
        let noop = noop.fd()?.try_clone()?;
        self.call_tc(&noop)?;
        let own = self.tc("tc_harness", input)?.0;
        self.call_tc(program)?;
        let (all, output) = self.tc("tc_harness", input)?;
        Ok((all - own + plain, output))
    }

    fn prepare(&mut self, input: &Input) -> Result<()> {
        ensure!(input.flows.is_power_of_two(), "{} flows", input.flows);
        let mut words = [0_u64; LENGTH / 8];
        for (word, bytes) in words.iter_mut().zip(input.frame.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let is_v6 = u32::from(input.frame[12] == 0x86);
        let map = self.ebpf.map_mut("FRAME").context("no map FRAME")?;
        let mut frames: Array<&mut MapData, [u64; LENGTH / 8]> = Array::try_from(map)?;
        frames.set(0, words, 0)?;
        let map = self.ebpf.map_mut("VARY").context("no map VARY")?;
        let mut vary: Array<&mut MapData, [u32; 2]> = Array::try_from(map)?;
        Ok(vary.set(0, [input.flows - 1, is_v6], 0)?)
    }

    fn call_tc(&mut self, program: &ProgramFd) -> Result<()> {
        let map = self.ebpf.map_mut("TC_TARGET").context("no map TC_TARGET")?;
        Ok(ProgramArray::try_from(map)?.set(0, program, 0)?)
    }

    fn call_xdp(&mut self, name: &str) -> Result<()> {
        let program: &Xdp = self.program(name)?.try_into()?;
        let program = program.fd()?.try_clone()?;
        let map = self.ebpf.map_mut("XDP_TARGET").context("no map XDP_TARGET")?;
        Ok(ProgramArray::try_from(map)?.set(0, &program, 0)?)
    }

    fn tc(&self, name: &str, input: &Input) -> Result<(f64, Output)> {
        let program: &SchedClassifier = self.program(name)?.try_into()?;
        fastest(program, input, &input.context())
    }

    fn xdp(&self, name: &str, input: &Input) -> Result<(f64, Output)> {
        let program: &Xdp = self.program(name)?.try_into()?;
        fastest(program, input, &[])
    }

    fn program(&self, name: &str) -> Result<&aya::programs::Program> {
        self.ebpf.program(name).with_context(|| format!("no program {name}"))
    }
}

/// Runs a TC program once, without the harness.
pub(crate) fn once(program: &SchedClassifier, input: &Input) -> Result<Output> {
    Ok(run(program, input, (&input.context(), 1))?.1)
}

type Options<'a> = TestRunOptions<'a>;

fn fastest<P>(program: &P, input: &Input, context: &[u8]) -> Result<(f64, Output)>
where
    P: for<'a> TestRun<Opts<'a> = Options<'a>, Result = aya::programs::TestRunResult>,
{
    let mut best = run(program, input, (context, PASSES))?;
    for _ in 1..CALLS {
        let next = run(program, input, (context, PASSES))?;
        if next.0 < best.0 {
            best = next;
        }
    }
    Ok(best)
}

fn run<P>(program: &P, input: &Input, (context, passes): (&[u8], u32)) -> Result<(f64, Output)>
where
    P: for<'a> TestRun<Opts<'a> = Options<'a>, Result = aya::programs::TestRunResult>,
{
    let mut frame = [0; LENGTH];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&input.frame);
    options.data_out = Some(&mut frame);
    options.ctx_in = (!context.is_empty()).then_some(context);
    options.repeat = passes;
    let result = program.test_run(options).context("run a program in the kernel")?;
    let nanoseconds = result.duration.as_secs_f64() * 1e9;
    Ok((nanoseconds, Output { frame, verdict: result.return_value.cast_signed() }))
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).with_context(|| format!("no program {name}"))
}
