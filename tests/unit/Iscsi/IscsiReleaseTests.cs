using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>A command ends once, whatever it waited for and however it failed: one that ended twice would be two commands in
/// one object. Found by the session simulation.</summary>
public sealed class IscsiReleaseTests
{
    private static readonly byte[] TestUnitReady = [0, 0, 0, 0, 0, 0];

    [Fact]
    public void A_dropped_command_that_an_ORDERED_one_waited_for_is_released_once()
    {
        var world = new IscsiWorld(11, new IscsiOptions { WindowBytes = 4096 }) { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient client = world.Connect().Login("ImmediateData=No");
        byte[] data = Pattern(4096, 1);
        uint holder = client.Command(IscsiClient.Cdb10(0x28, 0, 8), 4096); // is executed, and has the window
        uint dropped = client.Command(IscsiClient.Cdb10(0x2A, 8, 8), 0, data); // waits for the window
        uint ordered = client.Command(TestUnitReady, attribute: TaskAttribute.Ordered); // waits for the one before it
        Assert.Equal(TaskFunctionResponse.Complete, client.Manage(TaskFunction.AbortTask, dropped));
        world.Scsi.Gate.Set(true);
        Assert.Equal(ScsiStatus.Good, client.Finish(holder).Status);
        Assert.Equal(ScsiStatus.Good, client.Finish(ordered).Status);
        Assert.Equal(0, Assert.Single(world.Target.Sessions.Values).Counters.InFlight);

        // Several at a time, each with its own tag and place.
        world.Scsi.Gate = new LoopEvent<bool>();
        uint[] tags = [client.Command(TestUnitReady), client.Command(TestUnitReady), client.Command(TestUnitReady)];
        world.Scsi.Gate.Set(true);
        uint[] answered = [.. tags.Select(_ => ScsiResponsePdu.Read(client.Receive()!.Bhs).Tag)];
        Assert.Equal(tags, answered.Order());
        Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
        world.CheckClean();
    }

    [Theory]
    [InlineData(false)] // the first R2T's data once more
    [InlineData(true)] // the data of the second R2T, which was on its way
    public void Data_of_a_command_that_failed_for_lost_data_is_thrown_away(bool isOfSecond)
    {
        var world = new IscsiWorld(12);
        IscsiClient client = world.Connect().Login("ImmediateData=No", "MaxOutstandingR2T=2", "MaxBurstLength=4096", "FirstBurstLength=4096");
        byte[] data = Pattern(8192, 2);
        uint tag = client.Command(IscsiClient.Cdb10(0x2A, 0, 16), 0, data);
        R2TPdu first = R2TPdu.Read(client.Receive()!.Bhs), second = R2TPdu.Read(client.Receive()!.Bhs);
        byte[] Last(in R2TPdu r2t, uint dataSn)
        {
            var pdu = new DataOutPdu(true, 0, tag, r2t.TransferTag, 0, dataSn, r2t.Offset);
            return client.Pdu(b => pdu.WriteTo(b, 0), data[(int)r2t.Offset..(int)(r2t.Offset + r2t.LengthBytes)]);
        }

        // Both are received before the answer to the first can leave. DataSN 1 says that the PDU before it got lost.
        client.SendRaw([.. Last(first, 1), .. isOfSecond ? Last(second, 0) : Last(first, 1)]);
        ScsiAnswer answer = client.Finish(tag, null, 2);
        Assert.Equal(ScsiStatus.CheckCondition, answer.Status);
        Assert.Equal((0x0B, 0x47, 0x05), (answer.Sense[2], answer.Sense[12], answer.Sense[13]));
        Assert.Empty(world.Scsi.Executed);

        uint[] tags = [client.Command(TestUnitReady), client.Command(TestUnitReady)];
        foreach (uint next in tags) Assert.Equal(ScsiStatus.Good, client.Finish(next).Status);
        Assert.Equal(0, Assert.Single(world.Target.Sessions.Values).Counters.InFlight);
        Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
        world.CheckClean();
    }
}
