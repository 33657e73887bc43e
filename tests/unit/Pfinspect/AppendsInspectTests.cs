using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Unit.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Pfinspect;

/// <summary>What pfinspect makes of append-only volumes of a store that was killed or closed.</summary>
public class AppendsInspectTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Length_clients_and_seal_are_shown_and_checked(bool isClean)
    {
        var world = new StoreWorld(1, 32 * Units.MiB, 0, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05 });
        VolumeHead head = StoreWorld.HeadOf(7, 8 * Units.MiB) with { IsAppendOnly = true };
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(head)));
        for (ulong i = 1; i <= 12; i++)
        {
            var key = new AppendKey(new Guid((int)i, 0, 0, new byte[8]), 1);
            Assert.Equal(AppendOutcome.Done, world.Loop.Run(((IAppendStore)world.Store).AppendAsync(7, key, StoreWorld.Pattern(i, 100_001))).Outcome);
        }

        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.UpdateVolumeAsync(head with { IsSealed = true })));
        if (isClean) Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        using var inspect = new StoreBuilder();
        var medium = new byte[world.File.SizeBytes];
        for (int at = 0; at < medium.Length; at += (int)Units.MiB)
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.File.Medium.ReadAsync((ulong)at, medium.AsMemory(at, (int)Units.MiB))));
        File.WriteAllBytes(inspect.Path, medium);
        Assert.True(inspect.RunOnFile("verify") == 0, inspect.Out);
        Assert.Contains("sound", inspect.Out, StringComparison.Ordinal);
        Assert.Equal(0, inspect.RunOnFile("volumes"));
        Assert.Contains("append-only, 1200012 bytes long, 12 clients, sealed", inspect.Out, StringComparison.Ordinal);
        Assert.Equal(0, inspect.RunOnFile("log"));
        if (!isClean) Assert.Contains("100001 bytes at 0, client 00000001-0000-0000-0000-000000000000 append 1", inspect.Out, StringComparison.Ordinal);
    }
}
