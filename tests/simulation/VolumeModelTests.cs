using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>The oracle must accept what is allowed and refuse what is not, or every green seed means nothing.</summary>
public sealed class VolumeModelTests
{
    private static VolumeModel Make() => new(new VolumeHead(1, Guid.Empty, "v", Units.VolumeBytesMin, 1));

    private static byte[] Image(VolumeModel volume, params (ulong Id, ulong First, int Count)[] parts)
    {
        var image = new byte[volume.Head.SizeBytes];
        foreach ((ulong id, ulong first, int count) in parts)
            VolumeModel.Fill(image.AsSpan((int)first * 512, count * 512), id, 1, first);
        return image;
    }

    private static string? Judge(VolumeModel volume, byte[] image, bool powerWasCut) =>
        volume.JudgeAfterRestart(image, powerWasCut, staleAllowed: false, null, settle: false, 100);

    [Fact]
    public void An_acked_write_may_be_lost_by_a_power_cut_only_until_it_is_flushed()
    {
        VolumeModel volume = Make();
        ModelWrite write = volume.Begin(1, 8, 8, false, 1);
        volume.End(write, true, false, 2);
        Assert.Null(Judge(volume, Image(volume), powerWasCut: true));
        Assert.NotNull(Judge(volume, Image(volume), powerWasCut: false));
        volume.Flushed(3);
        Assert.NotNull(Judge(volume, Image(volume), powerWasCut: true));
        Assert.Null(Judge(volume, Image(volume, (1, 8, 8)), powerWasCut: true));
    }

    [Fact]
    public void A_write_in_flight_is_there_as_a_whole_or_not_at_all()
    {
        VolumeModel volume = Make();
        volume.Begin(1, 0, 16, false, 1);
        Assert.Null(Judge(volume, Image(volume), true));
        Assert.Null(Judge(volume, Image(volume, (1, 0, 16)), true));
        Assert.Contains("part", Judge(volume, Image(volume, (1, 0, 8)), true));
    }

    [Fact]
    public void Content_from_elsewhere_or_damaged_is_refused()
    {
        VolumeModel volume = Make();
        volume.Begin(1, 0, 16, false, 1);
        byte[] image = Image(volume, (1, 0, 16));
        image[700] ^= 1;
        Assert.Contains("damaged", Judge(volume, image, true));
        Assert.Contains("cannot be there", Judge(volume, Image(volume, (1, 32, 8)), true));
    }

    [Fact]
    public void A_read_never_goes_back_behind_a_finished_write()
    {
        VolumeModel volume = Make();
        volume.End(volume.Begin(1, 0, 8, false, 1), true, false, 2);
        ModelWrite second = volume.Begin(2, 0, 8, false, 3);
        byte[] old = Image(volume, (1, 0, 8)), fresh = Image(volume, (2, 0, 8));
        Assert.Null(volume.EndRead(0, old.AsSpan(0, 4096), 4));
        Assert.Null(volume.EndRead(0, fresh.AsSpan(0, 4096), 4));
        volume.End(second, true, false, 5);
        Assert.NotNull(volume.EndRead(0, old.AsSpan(0, 4096), 6));
        Assert.NotNull(volume.EndRead(0, new byte[4096], 6));
    }
}
