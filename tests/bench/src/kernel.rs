//! The kernel's side of the benchmarks, see `gateway-ebpf/src/bench`.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, PerCpuArray, ProgramArray, xdp::DevMap},
    programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, TestRunResult, Xdp},
};
use nix::time::{ClockId, clock_gettime};

use crate::frame::{self, LENGTH};

/// Programs of the object.
const PROGRAMS: &[&str] = &[NOTHING, CONTROL, MEASURE, MEASURE_OTHER, LOOK_UP, FILL, GENERATE, RELAY, COUNT];
/// Does nothing.
pub(crate) const NOTHING: &str = "nothing";
/// Restores the frame.
pub(crate) const CONTROL: &str = "control";
/// Restores the frame and runs the gateway.
pub(crate) const MEASURE: &str = "measure";
/// Restores the frame and runs another build of the gateway.
pub(crate) const MEASURE_OTHER: &str = "measure_other";
/// Restores the frame and looks it up in a table.
pub(crate) const LOOK_UP: &str = "look_up";
const FILL: &str = "fill";
const GENERATE: &str = "generate";
/// Sends every packet on.
pub(crate) const RELAY: &str = "relay";
/// Counts every packet.
pub(crate) const COUNT: &str = "count";

/// Elements of `SUBJECTS`.
const SUBJECT_NOTHING: u32 = 0;
const SUBJECT_GATEWAY: u32 = 1;
const SUBJECT_OTHER: u32 = 2;

/// Frames that the generator hands over at once.
const BATCH: u32 = 64;

const XDP_ABORTED: u32 = 0;
/// What a program answers that sends a packet out of another device.
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// Gives the flow after the present one, see `Turn` in the kernel's side. From Numerical Recipes 7.1.
const SCATTER: u32 = 1_664_525;

/// `struct xdp_md`.
type Context = [u32; 6];

/// The programs and maps, loaded.
pub(crate) struct Kernel {
    programs: Ebpf,
    frames: Array<MapData, [u32; 16]>,
    turn: Array<MapData, [u32; 5]>,
    subjects: ProgramArray<MapData>,
    plan: Array<MapData, [u32; 6]>,
    devices: DevMap<MapData>,
    generated: PerCpuArray<MapData, u64>,
    arrived: PerCpuArray<MapData, [u64; 2]>,
}

/// What a run of a program came to.
pub(crate) struct Ran {
    /// Its answer to the last packet.
    pub(crate) action: u32,
    /// The last packet as it left it.
    pub(crate) frame: [u8; LENGTH],
    /// Nanoseconds of processor time for a packet.
    pub(crate) nanoseconds: f64,
    /// Time that went by for a packet, as the kernel measured it around the program: better than processor time
    /// for a single one.
    pub(crate) elapsed: Duration,
}

/// Where packets of a stream go and what is expected at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    /// Ifindex that the generator sends to.
    pub(crate) egress: u32,
    /// Expected source address.
    pub(crate) source: [u8; 4],
    /// Bits of it that count.
    pub(crate) mask: [u8; 4],
    /// Destination and source MAC address that the relay writes.
    pub(crate) ethernet: [[u8; 6]; 2],
}

/// In which order flows take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// One after the other.
    Ascending,
    /// So that no processor foresees which is next.
    Scattered,
}

/// Frames that arrived so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// With the expected source.
    pub(crate) expected: u64,
    /// With any other.
    pub(crate) others: u64,
}

impl Kernel {
    /// Loads the object. The table is made for `capacity` elements, at once.
    pub(crate) fn load(object: &Path, capacity: u32) -> Result<Self> {
        let mut programs = EbpfLoader::new()
            .map_max_entries("TABLE", capacity)
            .load_file(object)
            .with_context(|| format!("cannot load {}", object.display()))?;
        let mut kernel = Self {
            frames: take(&mut programs, "FRAMES")?,
            turn: take(&mut programs, "TURN")?,
            subjects: take(&mut programs, "SUBJECTS")?,
            plan: take(&mut programs, "PLAN")?,
            devices: take(&mut programs, "DEVICES")?,
            generated: take(&mut programs, "GENERATED")?,
            arrived: take(&mut programs, "ARRIVED")?,
            programs,
        };
        for name in PROGRAMS {
            let program = kernel.program_mut(name)?;
            program.load().with_context(|| format!("the kernel refuses the program `{name}`"))?;
        }
        let nothing = kernel.program(NOTHING)?.fd()?.try_clone()?;
        kernel.subjects.set(SUBJECT_NOTHING, &nothing, 0)?;
        Ok(kernel)
    }

    /// Says which program [`MEASURE`] runs.
    pub(crate) fn set_gateway(&mut self, program: &ProgramFd) -> Result<()> {
        self.subjects.set(SUBJECT_GATEWAY, program, 0).context("the gateway's program cannot be tail called")
    }

    /// Says which program [`MEASURE_OTHER`] runs.
    pub(crate) fn set_other(&mut self, program: &ProgramFd) -> Result<()> {
        self.subjects.set(SUBJECT_OTHER, program, 0).context("the other program cannot be tail called")
    }

    /// Says which frames take turns, in this order, beginning with the first. Their number is a power of two.
    pub(crate) fn set_frames(&mut self, frames: &[[u8; LENGTH]]) -> Result<()> {
        self.set_templates(frames)?;
        self.set_turns(frames.len(), frames.len() as u32, Order::Ascending)
    }

    /// Says which frames come one after the other, whatever their number.
    pub(crate) fn set_list(&mut self, frames: &[[u8; LENGTH]]) -> Result<()> {
        self.set_templates(frames)?;
        let turns = frames.len().next_power_of_two();
        self.set_turns(turns, turns as u32, Order::Ascending)
    }

    /// Gives the frames that stand for many flows. [`Kernel::set_turns`] says how.
    pub(crate) fn set_templates(&mut self, frames: &[[u8; LENGTH]]) -> Result<()> {
        for (index, frame) in (0..).zip(frames) {
            self.frames.set(index, frame::element(frame), 0)?;
        }
        Ok(())
    }

    /// Says that so many flows take turns, made of the first frames. Both numbers are powers of two. Ascending,
    /// flow 0 is the first.
    pub(crate) fn set_turns(&mut self, frames: usize, flows: u32, order: Order) -> Result<()> {
        ensure!(
            frames.is_power_of_two() && flows.is_power_of_two() && flows as usize >= frames,
            "{frames} frames cannot stand for {flows} flows"
        );
        let factor = match order {
            Order::Ascending => 1,
            Order::Scattered => SCATTER,
        };
        let turn = [flows - 1, factor, flows - 1, frames as u32 - 1, frames.ilog2()];
        Ok(self.turn.set(0, turn, 0)?)
    }

    /// Puts the next `count` flows into the table that [`LOOK_UP`] reads.
    pub(crate) fn fill_table(&self, ingress: u32, count: u32) -> Result<()> {
        self.run(FILL, ingress, count).map(|_| ())
    }

    /// Runs a program on `repeat` packets as if they had arrived on `ingress`, a device of the namespace that
    /// the calling thread is in.
    pub(crate) fn run(&self, name: &str, ingress: u32, repeat: u32) -> Result<Ran> {
        let mut frame = [0; LENGTH];
        let begin = thread_time()?;
        let done = self.test_run(name, ingress, repeat, TestRunAttrs::new(), Some(&mut frame))?;
        let time = thread_time()?.saturating_sub(begin);
        if done.return_value == XDP_ABORTED {
            bail!("the program `{name}` failed");
        }
        let nanoseconds = time.as_secs_f64() * 1e9 / f64::from(repeat);
        Ok(Ran { action: done.return_value, frame, nanoseconds, elapsed: done.duration })
    }

    /// Sends frames out of the device that the plan names, until a signal interrupts the call. `ingress` is any
    /// device with NAPI of the namespace that the calling thread is in.
    pub(crate) fn generate(&self, ingress: u32) -> Result<()> {
        let live = TestRunAttrs::new().xdp_live_frames(BATCH);
        match self.test_run(GENERATE, ingress, u32::MAX, live, None) {
            Err(error) if !is_interrupted(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Frames that [`Kernel::generate`] has made since the object was loaded.
    pub(crate) fn generated(&self) -> Result<u64> {
        let values = self.generated.get(&0, 0).context("cannot read the number of frames")?;
        Ok(values.iter().sum())
    }

    /// Says where packets go, and forgets those that arrived.
    pub(crate) fn set_plan(&mut self, plan: Plan) -> Result<()> {
        let [destination, source] = plan.ethernet;
        let mut ethernet = [0; 12];
        ethernet[..6].copy_from_slice(&destination);
        ethernet[6..].copy_from_slice(&source);
        let mut words =
            [plan.egress, u32::from_ne_bytes(plan.source), u32::from_ne_bytes(plan.mask), 0, 0, 0];
        for (word, bytes) in words[3..].iter_mut().zip(ethernet.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Ok(self.plan.set(0, words, 0)?)
    }

    /// Says which device [`RELAY`] sends to: one of the namespace that the calling thread is in.
    pub(crate) fn set_relay_egress(&mut self, ifindex: u32) -> Result<()> {
        self.devices.set(0, ifindex, None, 0).context("cannot enter a device")
    }

    /// What arrived at [`COUNT`] since it was loaded.
    pub(crate) fn arrived(&self) -> Result<Arrived> {
        let values = self.arrived.get(&0, 0).context("cannot read the counters")?;
        let sum = |field: usize| values.iter().map(|value| value[field]).sum();
        Ok(Arrived { expected: sum(0), others: sum(1) })
    }

    /// A program, to be attached.
    pub(crate) fn program_mut(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.programs.program_mut(name).with_context(|| format!("no program `{name}`"))?;
        Ok(program.try_into()?)
    }

    fn program(&self, name: &str) -> Result<&Xdp> {
        let program = self.programs.program(name).with_context(|| format!("no program `{name}`"))?;
        Ok(program.try_into()?)
    }

    fn test_run(
        &self,
        name: &str,
        ingress: u32,
        repeat: u32,
        attrs: TestRunAttrs,
        out: Option<&mut [u8]>,
    ) -> Result<TestRunResult> {
        let context: Context = [0, LENGTH as u32, 0, ingress, 0, 0];
        let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        let options = TestRunOptions {
            data_in: Some(&[0; LENGTH]),
            data_out: out,
            ctx_in: Some(&context),
            repeat,
            attrs,
            ..TestRunOptions::new()
        };
        self.program(name)?.test_run(options).with_context(|| format!("cannot run `{name}`"))
    }
}

/// Whether a signal ended a system call.
fn is_interrupted(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::Interrupted)
}

/// Processor time that the calling thread has used.
fn thread_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("cannot read the clock")?;
    Ok(time.into())
}

fn take<M>(programs: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<Map>,
    M::Error: std::error::Error + Send + Sync + 'static,
{
    let map = programs.take_map(name).with_context(|| format!("no map {name}"))?;
    M::try_from(map).with_context(|| format!("map {name} is not what it should be"))
}
