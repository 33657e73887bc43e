using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading.Channels;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>
/// A Linux guest under qemu's full emulation (KVM is not needed): Debian's kernel and the small user space of
/// <c>tests/guest</c>, ordered about over its serial console. Ended by its pid; disposing is like pulling its plug.
/// </summary>
internal sealed class Guest : IDisposable
{
    /// <summary>How long anything in the guest may take; generous, because emulation shares the host's processors.</summary>
    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(3);

    private readonly Process _process;
    private readonly Channel<string> _lines = Channel.CreateUnbounded<string>();
    private readonly StringBuilder _said = new();
    private int _number;

    private Guest(Process process) => _process = process;

    /// <summary>All that came over the console.</summary>
    public string Said
    {
        get
        {
            lock (_said) return _said.ToString();
        }
    }

    /// <summary>Skips where the guest cannot be (another processor); builds the guest's kernel and initramfs if they are not there.</summary>
    public static void Require()
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64, "the guest is an x86-64 one");
        Blockd.Run(Path.Combine(Blockd.Root, "tests", "guest", "build.sh"));
    }

    /// <summary>Boots a guest whose /dev/vda is the volume <paramref name="export"/> behind the unix socket; qemu
    /// connects again, for two minutes, when the server goes away.</summary>
    public static Guest BootOn(string socket, string export) => Boot(
        "-blockdev", $"driver=nbd,node-name=d,server.type=unix,server.path={socket},export={export},reconnect-delay=120,discard=unmap",
        "-device", "virtio-blk-pci,drive=d,discard=on,write-cache=on");

    /// <summary>Boots a guest without a disk that reaches the host's 127.0.0.1 as 10.0.2.2.</summary>
    public static Guest BootWithNetwork() => Boot("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n");

    /// <summary>Runs a shell command in the guest; its output, or the test fails when it did not end with 0.</summary>
    public string Run(string command)
    {
        (int code, string output) = Try(command);
        Assert.True(code == 0, $"in the guest, {command} ended with {code}:\n{output}\nthe console:\n{Said}");
        return output;
    }

    /// <summary>Runs a shell command in the guest.</summary>
    public (int Code, string Output) Try(string command)
    {
        Send(command);
        var output = new StringBuilder();
        string end = "<<" + (++_number).ToString(CultureInfo.InvariantCulture) + " ";
        while (true)
        {
            string line = Next();
            int at = line.IndexOf(end, StringComparison.Ordinal);
            if (at < 0)
            {
                output.AppendLine(line);
                continue;
            }

            if (at > 0) output.AppendLine(line[..at]);
            int from = at + end.Length;
            return (int.Parse(line.AsSpan(from, line.IndexOf(">>", from, StringComparison.Ordinal) - from), CultureInfo.InvariantCulture), output.ToString());
        }
    }

    /// <summary>Waits for the next line of the console that holds <paramref name="what"/>; the lines that came until then, it included.</summary>
    public List<string> WaitFor(string what, int times = 1)
    {
        var seen = new List<string>();
        while (times > 0)
        {
            seen.Add(Next());
            if (seen[^1].Contains(what, StringComparison.Ordinal)) times--;
        }

        return seen;
    }

    /// <summary>Kills qemu with SIGKILL: the guest loses its power. The lines that it still said.</summary>
    public List<string> PullThePlug()
    {
        Assert.False(_process.HasExited, "qemu ended by itself:\n" + Said);
        _process.Kill();
        _process.WaitForExit();
        var rest = new List<string>();
        while (_lines.Reader.TryRead(out string? line)) rest.Add(line);
        return rest;
    }

    /// <summary>Lets the guest power off, after which qemu has flushed and closed the disk.</summary>
    public void PowerOff()
    {
        Send("sync; poweroff -f");
        Assert.True(_process.WaitForExit(Limit), "the guest did not power off:\n" + Said);
        Assert.Equal(0, _process.ExitCode);
    }

    public void Dispose()
    {
        if (!_process.HasExited) _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
    }

    private static Guest Boot(params string[] devices)
    {
        string folder = Path.Combine(Blockd.Root, "out", "guest");
        string[] arguments =
        [
            "-accel", "tcg", "-m", "192", "-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio",
            "-kernel", Path.Combine(folder, "vmlinuz"), "-initrd", Path.Combine(folder, "initrd.gz"),
            "-append", "console=ttyS0 quiet loglevel=1 panic=-1", .. devices,
        ];
        var guest = new Guest(Process.Start(new ProcessStartInfo("qemu-system-x86_64", arguments)
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        })!);
        guest._process.OutputDataReceived += guest.Hear;
        guest._process.ErrorDataReceived += guest.Hear;
        guest._process.BeginOutputReadLine();
        guest._process.BeginErrorReadLine();
        guest.WaitFor("<<0 0>>");
        return guest;
    }

    private void Send(string command)
    {
        _process.StandardInput.Write(command + "\n");
        _process.StandardInput.Flush();
    }

    private string Next()
    {
        using var limit = new CancellationTokenSource(Limit);
        try
        {
            return _lines.Reader.ReadAsync(limit.Token).AsTask().GetAwaiter().GetResult();
        }
        catch (Exception e) when (e is OperationCanceledException or ChannelClosedException)
        {
            throw new InvalidOperationException("the guest said nothing more; its console:\n" + Said, e);
        }
    }

    private void Hear(object sender, DataReceivedEventArgs line)
    {
        if (line.Data is not { } text)
        {
            return;
        }

        text = text.TrimEnd('\r');
        lock (_said) _said.AppendLine(text);
        _lines.Writer.TryWrite(text);
    }
}
