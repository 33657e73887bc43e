using BlockServer.Tests.Running;
using Xunit;

namespace BlockServer.Tests.Recovery;

/// <summary>The verifier itself: it must fail when something acknowledged is lost, old, cut or exchanged.</summary>
public sealed class VerifierTests
{
    private const int Blocks = 2048;

    [Fact]
    public async Task AStoreThatIsSetBackIsNoticed()
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("v", Blocks);
        string store = DaemonProcess.StoreIn(folder.Path);
        await Round(folder, verifier, $"v:{Blocks * Verifier.BlockSize}");
        DaemonProcess.Run("cp", "--sparse=always", store, folder.File("old"));
        await Round(folder, verifier);
        DaemonProcess.Run("cp", folder.File("old"), store);
        using DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "256m");
        Assert.Contains("was acknowledged", Assert.Throws<InvalidDataException>(() => verifier.Verify(daemon)).Message, StringComparison.Ordinal);
    }

    /// <summary>One acknowledged sector is undone behind the verifier's back: zeroed, or given its neighbour's content.</summary>
    [Theory]
    [InlineData("write -z 64k 512", "was acknowledged", Wire.Nbd)]
    [InlineData("write -P 0 7680 512", "was acknowledged", Wire.Iscsi)]
    [InlineData("write -P 9 9m 512", "stranger", Wire.Nbd)]
    [InlineData("write -P 9 9m 512", "stranger", Wire.Both)]
    public void OneLostSectorIsNoticed(string change, string complaint, Wire wire)
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        Verifier verifier = new("v", 4096, wire);
        using DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "256m", "v:16m");
        verifier.WriteAll(daemon);
        verifier.Verify(daemon);
        DaemonProcess.Run("qemu-io", "-f", "raw", "-c", change, daemon.Unix("v"));
        Assert.Contains(complaint, Assert.Throws<InvalidDataException>(() => verifier.Verify(daemon)).Message, StringComparison.Ordinal);
    }

    /// <summary>A request that was under way may be there or not, but not in part.</summary>
    [Fact]
    public void ARequestThatIsThereInPartIsNoticed()
    {
        DaemonProcess.Require();
        using ScratchFolder folder = new();
        using DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "256m", "v:16m");
        foreach ((int first, int count, bool isGood) in ((int, int, bool)[])[(100, 0, true), (100, 16, true), (100, 8, false), (108, 8, false)])
        {
            Verifier verifier = new("v", 4096);
            verifier.WriteAll(daemon);
            verifier.WriteUnanswered(daemon, 100, 16, first, count);
            if (isGood) verifier.Verify(daemon);
            else Assert.Contains("is there with 8 of 16", Assert.Throws<InvalidDataException>(() => verifier.Verify(daemon)).Message, StringComparison.Ordinal);
        }
    }

    private static async Task Round(ScratchFolder folder, Verifier verifier, params string[] volumes)
    {
        using DaemonProcess daemon = DaemonProcess.Start(folder.Path, "auto", "flush", "256m", volumes);
        if (volumes.Length == 0) verifier.Verify(daemon); // settles what the kill cut off
        Task load = verifier.Load(daemon, 5);
        await verifier.MakeProgress(load, 500);
        verifier.ExpectEnd();
        daemon.Kill();
        await load;
    }
}
