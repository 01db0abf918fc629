//! Runs programs in the kernel on one frame and tells the time of a pass.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray},
    programs::{
        ProgramFd, SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions,
        TestRunResult, Xdp, XdpMode, tc::SchedClassifierLinkId, xdp::XdpLinkId,
    },
};

use crate::frame::LENGTH;

/// Passes in one call; short, so that one of several calls is not interrupted.
const PASSES: u32 = 10_000;
/// Passes in one call where many flows are sent in turn: each of them once.
const MOST_PASSES: u32 = 1 << 16;
/// Calls of which the fastest counts.
const CALLS: usize = 8;
/// Room for what a frame gets longer by: the headers of a carrier.
const CARRIER: usize = 56;
/// Frames that the kernel hands over at once: what a driver's poll takes.
const BATCH: u32 = 64;

/// Where a program belongs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layer {
    /// Behind the stack's socket buffer.
    Tc,
    /// In the driver.
    Xdp,
}

impl Layer {
    /// Names of the program that does nothing, the harness, and the map that tells it what to call.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Tc => ["tc_noop", "tc_harness", "TC_TARGET"],
            Self::Xdp => ["xdp_noop", "xdp_harness", "XDP_TARGET"],
        }
    }
}

/// What a program is run on.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The frame that each pass begins with.
    pub(crate) frame: [u8; LENGTH],
    /// Flows that the frame is sent in, in turn: a power of two.
    pub(crate) flows: u32,
    /// Device that the program is at; zero for none.
    pub(crate) device: u32,
    /// Device that the packet came in by; zero if a socket sent it.
    pub(crate) came_by: u32,
}

impl Input {
    /// The `struct __sk_buff` or `struct xdp_md` that the kernel is told.
    fn context(&self, layer: Layer) -> Vec<u8> {
        let length = u32::try_from(LENGTH).expect("a frame is short");
        let (size, words) = match layer {
            Layer::Tc => (192, [(36, self.came_by), (40, self.device)]),
            Layer::Xdp if self.device == 0 => return Vec::new(),
            Layer::Xdp => (24, [(4, length), (12, self.device)]),
        };
        let mut context = vec![0; size];
        for (at, word) in words {
            context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        context
    }

    const fn passes(&self) -> u32 {
        match self.flows {
            flows @ PASSES..=MOST_PASSES => flows,
            _ => PASSES,
        }
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
        for name in ["xdp_noop", "xdp_harness", "reference_nat", "swap_macs", "xdp_drop"] {
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

    /// One of the benchmark's own programs, to be measured.
    pub(crate) fn own(&self, name: &str) -> Result<ProgramFd> {
        let fd = match self.ebpf.program(name) {
            Some(aya::programs::Program::Xdp(program)) => program.fd()?,
            Some(aya::programs::Program::SchedClassifier(program)) => program.fd()?,
            _ => anyhow::bail!("no program {name}"),
        };
        Ok(fd.try_clone()?)
    }

    /// Nanoseconds of one pass of the program that does nothing: at XDP, and at TC.
    pub(crate) fn noops(&self, input: &Input) -> Result<[f64; 2]> {
        let noop = |layer: Layer| self.time(layer, layer.names()[0], input);
        Ok([noop(Layer::Xdp)?.0, noop(Layer::Tc)?.0])
    }

    /// Nanoseconds of one pass of a program, and what it makes of the frame.
    pub(crate) fn measure(
        &mut self,
        (layer, program): (Layer, &ProgramFd),
        input: &Input,
    ) -> Result<(f64, Output)> {
        let [noop, harness, _] = layer.names();
        self.prepare(input)?;
        let plain = self.time(layer, noop, input)?.0;
        let noop = self.own(noop)?;
        self.call(layer, &noop)?;
        let own = self.time(layer, harness, input)?.0;
        self.call(layer, program)?;
        let (all, output) = self.time(layer, harness, input)?;
        Ok((all - own + plain, output))
    }

    /// Has a program pass so many packets, without taking the time.
    pub(crate) fn exercise(
        &mut self,
        (layer, program): (Layer, &ProgramFd),
        (input, passes): (&Input, u32),
    ) -> Result<()> {
        self.prepare(input)?;
        self.call(layer, program)?;
        let context = input.context(layer);
        match layer {
            Layer::Tc => run(self.tc("tc_harness")?, input, (&context, passes)).map(drop),
            Layer::Xdp => run(self.xdp("xdp_harness")?, input, (&context, passes)).map(drop),
        }
    }

    /// Nanoseconds for each of so many frames that a program of XDP sends by the device that they
    /// came by, until they are taken in at the far end, all on one CPU; and how many those were.
    pub(crate) fn live(
        &mut self,
        program: &ProgramFd,
        (input, frames): (&Input, u32),
    ) -> Result<(f64, u64)> {
        self.prepare(input)?;
        self.call(Layer::Xdp, program)?;
        self.send((input, frames))
    }

    /// Nanoseconds for each of so many frames that come in by a device and go on to the stack, until
    /// they are taken in where it sends them, all on one CPU; and how many those were.
    pub(crate) fn routed(&mut self, (input, frames): (&Input, u32)) -> Result<(f64, u64)> {
        let noop = self.own("xdp_noop")?;
        self.live(&noop, (input, frames))
    }

    fn send(&self, (input, frames): (&Input, u32)) -> Result<(f64, u64)> {
        let context = input.context(Layer::Xdp);
        let before = self.taken_in()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&input.frame);
        options.ctx_in = Some(&context);
        options.repeat = frames;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let result = self.xdp("xdp_harness")?.test_run(options).context("send live frames")?;
        Ok((result.duration.as_secs_f64() * 1e9, self.taken_in()? - before))
    }

    /// Attaches a program of XDP to a device of the calling thread's namespace.
    ///
    /// One that is attached nowhere takes a grace period to be run at all.
    pub(crate) fn attach(&mut self, name: &str, device: &str) -> Result<XdpLinkId> {
        let program: &mut Xdp = program_mut(&mut self.ebpf, name)?.try_into()?;
        program.attach(device, XdpMode::Driver).with_context(|| format!("attach to {device}"))
    }

    /// Attaches the program that does nothing to both directions of a device, likewise.
    pub(crate) fn attach_noops(&mut self, device: &str) -> Result<[SchedClassifierLinkId; 2]> {
        let program: &mut SchedClassifier = program_mut(&mut self.ebpf, "tc_noop")?.try_into()?;
        let mut at = |direction| {
            program.attach(device, direction).with_context(|| format!("attach to {device}"))
        };
        Ok([at(TcAttachType::Ingress)?, at(TcAttachType::Egress)?])
    }

    /// Ends that.
    pub(crate) fn detach_noops(&mut self, links: [SchedClassifierLinkId; 2]) -> Result<()> {
        let program: &mut SchedClassifier = program_mut(&mut self.ebpf, "tc_noop")?.try_into()?;
        Ok(links.into_iter().try_for_each(|link| program.detach(link))?)
    }

    /// Ends what [`attach`](Self::attach) began.
    pub(crate) fn detach(&mut self, name: &str, link: XdpLinkId) -> Result<()> {
        let program: &mut Xdp = program_mut(&mut self.ebpf, name)?.try_into()?;
        Ok(program.detach(link)?)
    }

    fn taken_in(&self) -> Result<u64> {
        let map = self.ebpf.map("TAKEN_IN").context("no map TAKEN_IN")?;
        let frames: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map)?;
        Ok(frames.get(&0, 0)?.iter().sum())
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

    fn call(&mut self, layer: Layer, program: &ProgramFd) -> Result<()> {
        let [.., target] = layer.names();
        let map = self.ebpf.map_mut(target).with_context(|| format!("no map {target}"))?;
        ProgramArray::try_from(map)?.set(0, program, 0).context(target)
    }

    fn time(&self, layer: Layer, name: &str, input: &Input) -> Result<(f64, Output)> {
        match layer {
            Layer::Tc => fastest(self.tc(name)?, input, layer),
            Layer::Xdp => fastest(self.xdp(name)?, input, layer),
        }
    }

    /// Runs the program that does nothing once, likewise.
    pub(crate) fn noop_once(&self, layer: Layer, input: &Input) -> Result<f64> {
        let [noop, ..] = layer.names();
        let how = (&input.context(layer)[..], 1);
        let (time, _) = match layer {
            Layer::Tc => run(self.tc(noop)?, input, how)?,
            Layer::Xdp => run(self.xdp(noop)?, input, how)?,
        };
        Ok(time)
    }

    fn tc(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn xdp(&self, name: &str) -> Result<&Xdp> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }
}

/// Runs a TC program once, without the harness.
pub(crate) fn once(program: &SchedClassifier, input: &Input) -> Result<Output> {
    Ok(timed_once(Layer::Tc, program, input)?.1)
}

/// Runs a pinned program of a layer once; its nanoseconds, the kernel's own for one pass included.
pub(crate) fn timed_once(
    layer: Layer,
    program: &SchedClassifier,
    input: &Input,
) -> Result<(f64, Output)> {
    run(program, input, (&input.context(layer), 1))
}

/// A program that is run on frames.
trait Runs: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> {}

impl Runs for SchedClassifier {}
impl Runs for Xdp {}

fn fastest<P: Runs>(program: &P, input: &Input, layer: Layer) -> Result<(f64, Output)> {
    let how = (&input.context(layer)[..], input.passes());
    let mut best = run(program, input, how)?;
    for _ in 1..CALLS {
        let next = run(program, input, how)?;
        if next.0 < best.0 {
            best = next;
        }
    }
    Ok(best)
}

fn run<P: Runs>(
    program: &P,
    input: &Input,
    (context, passes): (&[u8], u32),
) -> Result<(f64, Output)> {
    let mut frame = [0; LENGTH + CARRIER];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&input.frame);
    options.data_out = Some(&mut frame);
    options.ctx_in = (!context.is_empty()).then_some(context);
    options.repeat = passes;
    let result = program.test_run(options).context("run a program in the kernel")?;
    let nanoseconds = result.duration.as_secs_f64() * 1e9;
    let (frame, _) = frame.split_first_chunk().context("a frame that is shorter than it was")?;
    Ok((nanoseconds, Output { frame: *frame, verdict: result.return_value.cast_signed() }))
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).with_context(|| format!("no program {name}"))
}
