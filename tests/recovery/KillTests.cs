using BlockServer.Tests.Running;
using Xunit;

[assembly: CollectionBehavior(DisableTestParallelization = true)]

namespace BlockServer.Tests.Recovery;

/// <summary>The real daemon, killed under load: 4 combinations of 5 cycles each on one store.</summary>
public sealed class KillTests(ITestOutputHelper output)
{
    private const int Cycles = 5;
    private const int Blocks = 8192;

    [Theory]
    [InlineData("flush", "io_uring")]
    [InlineData("flush", "aio")]
    [InlineData("ack", "io_uring")]
    [InlineData("ack", "aio")]
    public async Task NothingAcknowledgedIsLost(string durability, string engine)
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("v", Blocks, durability == "ack");
        Random random = new(durability.Length * 100 + engine.Length);
        for (int cycle = 0; cycle < Cycles; cycle++)
        {
            string[] volumes = cycle == 0 ? [$"v:{(long)Blocks * Verifier.BlockSize}"] : [];
            using DaemonProcess daemon = DaemonProcess.Start(folder.Path, engine, durability, "1g", volumes);
            verifier.Verify(daemon);
            long before = verifier.Acknowledged;
            Task load = verifier.Load(daemon, cycle);
            await Task.WhenAny(load, Task.Delay(300 + random.Next(1200)));
            verifier.ExpectCrash();
            daemon.Kill();
            await load;
            Assert.True(verifier.Acknowledged > before, "the load did nothing");
        }

        using DaemonProcess last = DaemonProcess.Start(folder.Path, engine, durability, "1g");
        verifier.Verify(last);
        output.WriteLine($"{durability} {engine}: {verifier.Acknowledged} writes, {verifier.Flushes} flushes, {Cycles} kills");
    }

    [Fact]
    public async Task WhatFioFlushedIsThereAfterAKill()
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("other", 1024, durableWhenAcknowledged: false);
        using (DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "1g", "fio:64m", "other:4m"))
        {
            Task load = verifier.Load(daemon, 1);
            Fio(folder, daemon, "--end_fsync=1", "--do_verify=0");
            verifier.ExpectCrash();
            daemon.Kill();
            await load;
        }

        using DaemonProcess again = DaemonProcess.Start(folder.Path, "auto", "flush", "1g");
        verifier.Verify(again);
        Fio(folder, again, "--verify_only");
    }

    private static void Fio(ScratchFolder folder, DaemonProcess daemon, params string[] more) => DaemonProcess.Run(
        "fio",
        ["--name=v", $"--aux-path={folder.Path}", "--ioengine=nbd", $"--uri={daemon.Unix("fio")}", "--rw=randwrite", "--bs=4k", "--size=64m",
            "--iodepth=16", "--randseed=7", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", .. more]);
}
