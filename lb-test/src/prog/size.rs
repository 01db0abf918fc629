//! How much of the verifier's limits a loaded program takes.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;

const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// Bytes of `struct bpf_prog_info` that are asked for.
const INFO: usize = 40;
const XLATED_LENGTH: usize = 20;
const XLATED_POINTER: usize = 32;

const FRAME_POINTER: u8 = 10;
/// Bits of an instruction's first byte (RFC 9669, 3).
const CLASS: u8 = 0x07;
const LOAD_NUMBER: u8 = 0x00;
const LOAD: u8 = 0x01;
const ALU_32: u8 = 0x04;
const ALU: u8 = 0x07;
const STORE: u8 = 0x02;
const STORE_REGISTER: u8 = 0x03;
const MOVE_REGISTER: u8 = 0xbf;
const ADD_NUMBER: u8 = 0x07;
const CALL: u8 = 0x85;
/// Source of a call of a function of the same program.
const LOCAL_CALL: u8 = 1;
/// What the verifier rounds a function's stack up to.
const STACK_UNIT: u32 = 32;

/// The size of one program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size {
    /// Instructions that the verifier has processed; its limit is a million.
    pub instructions: u32,
    /// Stack of its deepest chain of calls, in bytes; the limit is 512.
    pub stack: u32,
}

impl Size {
    /// The size of a pinned program.
    ///
    /// # Errors
    /// When it is not there, or the kernel does not show it.
    pub fn of(pin: &Path) -> Result<Self> {
        let info =
            ProgramInfo::from_pin(pin).with_context(|| format!("program {}", pin.display()))?;
        let instructions = info.verified_instruction_count();
        let fd = info.fd()?;
        let code = code(fd.as_fd().as_raw_fd())?;
        Ok(Self {
            instructions: instructions.context("no count of instructions: Linux 5.16 is needed")?,
            stack: stack(&code, 0),
        })
    }
}

/// One instruction, as far as it matters here.
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    number: i32,
}

impl Instruction {
    fn read(bytes: [u8; 8]) -> Self {
        let [code, registers, o0, o1, n @ ..] = bytes;
        Self {
            code,
            destination: registers & 0xf,
            source: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            number: i32::from_le_bytes(n),
        }
    }

    /// Does it give its destination, a register, another value?
    fn writes_destination(self) -> bool {
        matches!(self.code & CLASS, LOAD_NUMBER | LOAD | ALU_32 | ALU)
    }

    /// How far below the frame pointer it reads or writes.
    fn reach(self) -> u32 {
        let base = match self.code & CLASS {
            LOAD => self.source,
            STORE | STORE_REGISTER => self.destination,
            _ => return 0,
        };
        if base == FRAME_POINTER { (-i32::from(self.offset)).unsigned_abs() } else { 0 }
    }
}

/// Stack of the function that begins at `start` and of the deepest that it calls.
fn stack(code: &[Instruction], start: usize) -> u32 {
    let (mut own, mut deepest, mut copies) = (0, 0, [false; 16]);
    for (index, instruction) in code.iter().enumerate().take(end(code, start)).skip(start) {
        own = own.max(instruction.reach());
        let is_copy = &mut copies[usize::from(instruction.destination)];
        if instruction.code == MOVE_REGISTER {
            *is_copy = instruction.source == FRAME_POINTER;
        } else if instruction.code == ADD_NUMBER && *is_copy {
            own = own.max(instruction.number.unsigned_abs());
            *is_copy = false;
        } else if instruction.writes_destination() {
            *is_copy = false;
        }
        if let Some(target) = target(*instruction, (index, code.len())) {
            deepest = deepest.max(stack(code, target));
        }
    }
    own.next_multiple_of(STACK_UNIT) + deepest
}

/// The first instruction of the next function.
fn end(code: &[Instruction], start: usize) -> usize {
    let calls = code.iter().enumerate();
    let starts = calls.filter_map(|(index, instruction)| target(*instruction, (index, code.len())));
    starts.filter(|next| *next > start).min().unwrap_or(code.len())
}

/// The function of the same program that an instruction calls.
fn target(instruction: Instruction, (index, length): (usize, usize)) -> Option<usize> {
    if instruction.code != CALL || instruction.source != LOCAL_CALL {
        return None;
    }
    // Of a compiled program the kernel shows the distance as the offset, cut off after 16 bits, and the number is
    // another.
    if instruction.offset == 0 {
        return index.checked_add_signed(isize::try_from(instruction.number).ok()? + 1);
    }
    let distances = [0, 1 << 16, -1 << 16].map(|cut| isize::from(instruction.offset) + cut);
    let targets =
        distances.into_iter().filter_map(|distance| index.checked_add_signed(distance + 1));
    { targets }.find(|target| *target < length)
}

fn code(program: i32) -> Result<Vec<Instruction>> {
    let mut info = [0; INFO];
    ask(program, &mut info).context("ask for the length of a program")?;
    let length: [u8; 4] = info[XLATED_LENGTH..][..4].try_into()?;
    let mut bytes = vec![0_u8; u32::from_ne_bytes(length) as usize];
    info = [0; INFO];
    info[XLATED_LENGTH..][..4].copy_from_slice(&length);
    let address = bytes.as_mut_ptr() as u64;
    info[XLATED_POINTER..][..8].copy_from_slice(&address.to_ne_bytes());
    ask(program, &mut info).context("ask for the instructions of a program")?;
    Ok(bytes.as_chunks::<8>().0.iter().copied().map(Instruction::read).collect())
}

fn ask(program: i32, info: &mut [u8; INFO]) -> io::Result<()> {
    let mut attributes = [0_u8; 16];
    attributes[..4].copy_from_slice(&program.to_ne_bytes());
    attributes[4..8].copy_from_slice(&(u32::try_from(INFO).unwrap_or_default()).to_ne_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the kernel reads the attributes and writes at most as many bytes to the information
    // as they say; it writes instructions only to a buffer of the length that stands beside it.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, attributes.as_mut_ptr(), attributes.len())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds an instruction: code, destination and source, offset, number.
    fn instruction(code: u8, registers: (u8, u8), offset: i16, number: i32) -> Instruction {
        Instruction { code, destination: registers.0, source: registers.1, offset, number }
    }

    #[test]
    fn the_stack_is_that_of_the_deepest_chain() {
        let exit = instruction(0x95, (0, 0), 0, 0);
        let code = [
            instruction(0x7b, (10, 1), -8, 0),
            instruction(CALL, (0, LOCAL_CALL), 0, 2),
            instruction(CALL, (0, LOCAL_CALL), 0, 4),
            exit,
            // The first function called: an address 100 bytes below the frame pointer.
            instruction(MOVE_REGISTER, (2, 10), 0, 0),
            instruction(ADD_NUMBER, (2, 0), 0, -100),
            exit,
            // The second one: its register holds no address any more.
            instruction(MOVE_REGISTER, (2, 10), 0, 0),
            instruction(0x61, (2, 1), 0, 0),
            instruction(ADD_NUMBER, (2, 0), 0, 4000),
            instruction(0x61, (1, 10), -40, 0),
            exit,
        ];
        assert_eq!(stack(&code, 0), 32 + 128);
        assert_eq!(stack(&code, 7), 64);
    }
}
