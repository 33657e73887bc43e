using BlockServer.Tests.Running;
using Xunit;

[assembly: CollectionBehavior(DisableTestParallelization = true)]

namespace BlockServer.Tests.Recovery;

/// <summary>The real daemon, killed, stopped and paused under a verifying load on both disk engines.</summary>
public sealed class KillTests(ITestOutputHelper output)
{
    private const int Cycles = 5;

    /// <summary>5 kills of each combination. After every second kill the next start is killed too, while it recovers.</summary>
    [Theory]
    [InlineData("flush", "io_uring", Wire.Nbd)]
    [InlineData("flush", "aio", Wire.Nbd)]
    [InlineData("ack", "io_uring", Wire.Nbd)]
    [InlineData("ack", "aio", Wire.Nbd)]
    [InlineData("flush", "io_uring", Wire.Iscsi)]
    [InlineData("flush", "aio", Wire.Iscsi)]
    [InlineData("ack", "io_uring", Wire.Iscsi)]
    [InlineData("ack", "aio", Wire.Iscsi)]
    [InlineData("flush", "io_uring", Wire.Both)]
    public async Task NothingAcknowledgedIsLost(string durability, string engine, Wire wire)
    {
        DaemonProcess.Require();
        const int blocks = 8192;
        using ScratchFolder folder = new();
        Verifier verifier = new("v", blocks, wire);
        Random random = NewRandom();
        int whileOpening = 0;
        for (int cycle = 0; cycle < Cycles; cycle++)
        {
            string[] volumes = cycle == 0 ? [$"v:{(long)blocks * Verifier.BlockSize}"] : [];
            using DaemonProcess daemon = DaemonProcess.Start(folder.Path, engine, durability, "1g", volumes);
            verifier.Verify(daemon);
            await KillUnderLoad(verifier, daemon, random);
            MustBeSound(folder, "check");
            if (cycle % 2 == 0) whileOpening += KillWhileItOpens(folder, engine, durability, random, 3);
        }

        using DaemonProcess last = DaemonProcess.Start(folder.Path, engine, durability, "1g");
        verifier.Verify(last);
        last.Kill();
        MustBeSound(folder, "verify");
        output.WriteLine($"{durability} {engine} {wire}: {verifier.Acknowledged} changes, {verifier.Flushes} flushes, {Cycles} kills under load, {whileOpening} while opening");
    }

    /// <summary>A store whose log laps and whose blocks nearly all are in use: checkpoints and reuse all the time.</summary>
    [Theory]
    [InlineData("io_uring")]
    [InlineData("aio")]
    public async Task NothingIsLostWhenTheLogLapsAndTheStoreIsNearlyFull(string engine)
    {
        DaemonProcess.Require();
        const int blocks = 6144;
        using ScratchFolder folder = new();
        Verifier verifier = new("v", blocks);
        Random random = NewRandom();
        for (int cycle = 0; cycle < 3; cycle++)
        {
            string[] volumes = cycle == 0 ? [$"v:{(long)blocks * Verifier.BlockSize}"] : [];
            using DaemonProcess daemon = DaemonProcess.Start(folder.Path, engine, "flush", "96m", volumes);
            verifier.Verify(daemon);
            Task load = verifier.Load(daemon, random.Next());
            await verifier.MakeProgress(load, 12_000);
            verifier.ExpectEnd();
            daemon.Kill();
            await load;
            MustBeSound(folder, "check");
        }

        using DaemonProcess last = DaemonProcess.Start(folder.Path, engine, "flush", "96m");
        verifier.Verify(last);
        last.Kill();
        MustBeSound(folder, "verify");
        output.WriteLine($"{engine}: {verifier.Acknowledged} changes");
    }

    [Theory]
    [InlineData(Wire.Nbd)]
    [InlineData(Wire.Iscsi)]
    public async Task AStopUnderLoadLosesNothing(Wire wire)
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("v", 4096, wire);
        Random random = NewRandom();
        for (int stop = 0; stop < 3; stop++)
        {
            using DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "1g", "v:16m");
            verifier.Verify(daemon);
            Task load = verifier.Load(daemon, random.Next());
            await verifier.MakeProgress(load, 2_000);
            verifier.ExpectEnd();
            daemon.Signal("TERM");
            Assert.True(daemon.WaitForExit() == 0, $"SIGTERM ended the daemon with another code than 0:\n{daemon.Output}");
            await load;
            MustBeSound(folder, "verify");
            Assert.Contains("clean        yes", DaemonProcess.Run(Inspector, "superblock", DaemonProcess.StoreIn(folder.Path)), StringComparison.Ordinal);
        }

        using DaemonProcess last = DaemonProcess.Start(folder.Path, "auto", "flush", "1g");
        verifier.Verify(last);
    }

    [Fact]
    public async Task APauseUnderLoadDoesNoHarm()
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("v", 4096);
        using DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "1g", "v:16m");
        Task load = verifier.Load(daemon, NewRandom().Next());
        for (int i = 0; i < 3; i++)
        {
            await verifier.MakeProgress(load, 1_000);
            daemon.Signal("STOP");
            await Task.Delay(700);
            daemon.Signal("CONT");
        }

        await verifier.MakeProgress(load, 1_000);
        verifier.ExpectEnd();
        daemon.Kill();
        await load;
        using DaemonProcess last = DaemonProcess.Start(folder.Path, "auto", "flush", "1g");
        verifier.Verify(last);
    }

    /// <summary>Kills in the midst of a load, at a random time from its first requests on.</summary>
    private static async Task KillUnderLoad(Verifier verifier, DaemonProcess daemon, Random random)
    {
        Task load = verifier.Load(daemon, random.Next());
        await verifier.MakeProgress(load, 1 + random.Next(100));
        await Task.WhenAny(load, Task.Delay(random.Next(1200)));
        verifier.ExpectEnd();
        daemon.Kill();
        await load;
    }

    /// <summary>Starts the daemon again and again and kills it while it recovers; how often it did not get to serving.</summary>
    private static int KillWhileItOpens(ScratchFolder folder, string engine, string durability, Random random, int times)
    {
        int early = 0;
        for (int i = 0; i < times; i++)
        {
            using DaemonProcess daemon = DaemonProcess.Launch(folder.Path, engine, durability, "1g");
            Assert.True(daemon.WaitUntilItOpensItsStore() || daemon.IsReady, $"the daemon did not open its store:\n{daemon.Output}");
            Thread.Sleep(random.Next(60));
            if (!daemon.IsReady) early++;
            daemon.Kill();
            MustBeSound(folder, "check");
        }

        return early;
    }

    /// <summary>The offline judge: what the kill left breaks no invariant.</summary>
    private static void MustBeSound(ScratchFolder folder, string command) =>
        Assert.EndsWith("\nsound\n", DaemonProcess.Run(Inspector, command, DaemonProcess.StoreIn(folder.Path)), StringComparison.Ordinal);

    private static string Inspector => Path.Combine(DaemonProcess.Root, "out", "pfinspect");

    /// <summary>Dice of this run, told in its output; BLOCKSERVER_SEED throws them again.</summary>
    private Random NewRandom()
    {
        int seed = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_SEED"), out int given) ? given : Random.Shared.Next();
        output.WriteLine($"BLOCKSERVER_SEED={seed}");
        return new Random(seed);
    }
}
