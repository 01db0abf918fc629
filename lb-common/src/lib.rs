//! Types and pure logic shared by the kernel programs and the agent.
#![no_std]
