using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>A disk that fails while a store is opened.</summary>
public sealed class RecoveryErrorTests
{
    /// <summary>A read that fails says nothing about whether something had arrived. For data that is no reason to refuse: it
    /// counts as arrived, and its own reads tell. Where the log may go on it is one. Either way an acknowledged write is never
    /// taken for one that was cut.</summary>
    [Fact]
    public void A_read_error_while_opening_drops_no_acknowledged_write()
    {
        var driver = new StorageDriver();
        int refused = 0, opened = 0;
        for (ulong seed = 1; seed <= 300; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, driver.MediumBytes, seed);
            Assert.Null(loop.Run(driver.FormatAsync(loop, disk, 0)));
            IStore store = loop.Run(driver.OpenAsync(loop, disk, null, Durability.Ack)).Store!;
            Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(new VolumeHead(1, Guid.Empty, "v", Units.MiB, 1))));
            var data = new byte[8 * Units.BlockBytes];
            VolumeModel.Fill(data, 1, 1, 0);
            Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(1)!.WriteAsync(0, data, WriteFlags.None)));
            disk.CutPower();

            loop = new SimLoop(seed + 1000);
            disk.Attach(loop);
            disk.Faults = new SimDiskFaults { ReadError = 0.2 };
            Opened again = loop.Run(driver.OpenAsync(loop, disk, null, Durability.Ack));
            disk.Faults = SimDiskFaults.None;
            if (again.Store is null)
            {
                refused++;
                continue;
            }

            opened++;
            var back = new byte[data.Length];
            Assert.Equal(IoStatus.Ok, loop.Run(again.Store.OpenVolume(1)!.ReadAsync(0, back)).Status);
            Assert.Equal(data, back);
        }

        Assert.True(refused > 0 && opened > 0);
    }
}
