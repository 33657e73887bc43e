using System.Globalization;
using BlockServer.Tests.Running;
using Xunit;

namespace BlockServer.Tests.Recovery;

/// <summary>fio as the judge: it writes blocks with checksums, its server is killed, and it knows what was answered.</summary>
public sealed class FioTests
{
    /// <summary>fio dies with its server and keeps the list of what was answered; all of that must be there. Then blocks
    /// are overwritten behind its back, and it must complain: a judge that cannot is none.</summary>
    [Theory]
    [InlineData("io_uring")]
    [InlineData("aio")]
    public async Task WhatWasAnsweredToFioIsThereAfterAKill(string engine)
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        using (DaemonProcess daemon = DaemonProcess.Start(folder.Path, engine, "flush", "1g", "fio:64m"))
        {
            Task<(int Code, string Text)> fio = Task.Run(() => Fio(folder, daemon, "--do_verify=0", "--verify_state_save=1"));
            await WaitUntilUsed(daemon, fio);
            daemon.Kill();
            (int code, string text) = await fio;
            Assert.True(code != 0, "fio did not notice that its server was killed:\n" + text);
        }

        Assert.Equal(4, Directory.GetFiles(folder.Path, "*-verify.state").Length);
        using DaemonProcess again = DaemonProcess.Start(folder.Path, engine, "flush", "1g");
        (int verified, string said) = Fio(folder, again, "--verify_only", "--verify_state_load=1");
        Assert.True(verified == 0, said);

        DaemonProcess.Run("qemu-io", "-f", "raw", "-c", "write -P 7 0 32m", again.Unix("fio"));
        (int spoilt, string complaint) = Fio(folder, again, "--verify_only", "--verify_state_load=1");
        Assert.NotEqual(0, spoilt);
        Assert.Contains("verify: bad", complaint, StringComparison.Ordinal);
    }

    [Fact]
    public async Task WhatFioFlushedIsThereAfterAKill()
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("other", 1024);
        using (DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "1g", "fio:64m", "other:4m"))
        {
            Task load = verifier.Load(daemon, 1);
            (int code, string said) = Fio(folder, daemon, "--end_fsync=1", "--do_verify=0", "--verify_state_save=0");
            Assert.True(code == 0, said);
            verifier.ExpectEnd();
            daemon.Kill();
            await load;
        }

        using DaemonProcess again = DaemonProcess.Start(folder.Path, "auto", "flush", "1g");
        verifier.Verify(again);
        (int verified, string text) = Fio(folder, again, "--verify_only", "--verify_state_save=0");
        Assert.True(verified == 0, text);
    }

    /// <summary>Waits until a good part of the volume is written, so that the kill falls into the middle of fio's work.</summary>
    private static async Task WaitUntilUsed(DaemonProcess daemon, Task fio)
    {
        for (long used = 0; used < 8 << 20 && !fio.IsCompleted; await Task.Delay(50))
        {
            used = DaemonProcess.Run("nbdinfo", "--map", daemon.Unix("fio")).Split('\n', StringSplitOptions.RemoveEmptyEntries)
                .Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
                .Where(words => words[2] == "0").Sum(words => long.Parse(words[1], CultureInfo.InvariantCulture));
        }
    }

    // Four connections, each with one request under way: fio's list of what was answered assumes that answers come in order.
    private static (int Code, string Text) Fio(ScratchFolder folder, DaemonProcess daemon, params string[] more) => DaemonProcess.Try(
        "env",
        ["-C", folder.Path, "fio", "--name=v", $"--aux-path={folder.Path}", "--ioengine=nbd", $"--uri={daemon.Unix("fio")}", "--rw=randwrite",
            "--bs=4k", "--numjobs=4", "--size=16m", "--offset_increment=16m", "--iodepth=1", "--randseed=7", "--verify=crc32c", "--verify_fatal=1", .. more]);
}
