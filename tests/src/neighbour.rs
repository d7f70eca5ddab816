//! A second machine: a network namespace at the other end of cables to the node.

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Name of the namespace.
const NAME: &str = "podrail-neighbour";

/// The second machine, until dropped; then it and the node's ends of the cables are gone.
#[derive(Debug)]
pub struct Neighbour {
    programs: Vec<Child>,
}

impl Neighbour {
    /// Connects one by a cable per name; both of its ends have that name and are up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn connect(cables: &[&str]) -> Result<Neighbour> {
        // One that an earlier run left.
        let _ = on_node(&format!("ip netns delete {NAME}"));
        on_node(&format!("ip netns add {NAME}"))?;
        let neighbour = Neighbour { programs: Vec::new() };
        for cable in cables {
            on_node(&format!("ip link add {cable} type veth peer name {cable} netns {NAME}"))?;
            on_node(&format!("ip link set {cable} up"))?;
            neighbour.run(&format!("ip link set {cable} up"))?;
        }
        Ok(neighbour)
    }

    /// Runs a command of words without white space on it.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, command: &str) -> Result<()> {
        on_node(&inside(command))
    }

    /// Starts a program on it that runs until the machine is dropped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, command: &str) -> Result<()> {
        self.programs.push(spawn(&inside(command))?);
        Ok(())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        for program in &mut self.programs {
            end(program);
        }
        let _ = on_node(&format!("ip netns delete {NAME}"));
    }
}

/// Runs a command of words without white space on the node.
///
/// # Errors
/// It fails.
pub fn on_node(command: &str) -> Result<()> {
    let output = words(command).output().with_context(|| format!("run {command}"))?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Starts a program of words without white space on the node.
///
/// # Errors
/// It cannot be started.
pub fn spawn(command: &str) -> Result<Child> {
    let mut command_line = words(command);
    command_line.stdout(Stdio::null()).stderr(Stdio::null());
    command_line.spawn().with_context(|| format!("start {command}"))
}

/// Ends a program that was started here.
pub fn end(program: &mut Child) {
    let _ = program.kill();
    let _ = program.wait();
}

fn inside(command: &str) -> String {
    // Becomes the program, so that whoever ends the child ends the program.
    format!("nsenter --net=/run/netns/{NAME} {command}")
}

fn words(command: &str) -> Command {
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null());
    command
}
